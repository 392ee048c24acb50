"""What analyses found, for people: in the terminal, and as the sections of a page."""
