"""What a mixture-of-experts checkpoint's routers and experts do on a text, and what better routing would change."""
