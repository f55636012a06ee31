"""Helpers around sockets that the client, the server and the command line share."""
