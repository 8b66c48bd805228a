"""Messages between roles, and their encoding."""
