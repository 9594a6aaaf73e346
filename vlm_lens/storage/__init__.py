"""What is kept on disk: written whole or not at all, gone on with after a kill, told apart."""
