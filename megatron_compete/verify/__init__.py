"""Is a checkpoint whole, and is a conversion the same model?"""
