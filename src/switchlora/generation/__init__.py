"""`switchlora generate`: a finished model writes on, and one sees it write."""
