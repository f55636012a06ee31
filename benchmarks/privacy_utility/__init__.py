"""Text quality at equal attack success: this project, DEL as published, and other methods."""
