"""How the application is run: on this machine (``local``), and what runs it elsewhere."""
