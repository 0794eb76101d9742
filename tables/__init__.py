"""What is remembered about a user and what follows from it: pure, no I/O, no clock."""
