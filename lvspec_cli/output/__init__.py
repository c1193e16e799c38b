"""Records, and every file that lvspec writes."""
