"""What a pair needs of memory, and where it goes on a machine."""
