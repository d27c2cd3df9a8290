"""Where the numbers of a run go: a table, and the folders and databases that other tools read.  All of it offline."""
