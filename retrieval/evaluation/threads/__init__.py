"""What is scored of threads: groups of comments, and reply links as sets with their files."""
