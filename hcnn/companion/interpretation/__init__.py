"""What the attributes mean, section 5.3."""
