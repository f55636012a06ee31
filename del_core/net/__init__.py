"""Network helpers that the client, the server and the command line share."""
