"""What every room uses: errors, files that appear whole, YAML, checked settings. It imports nothing of this package."""
