"""What is read over many prompts: hidden states, vectors."""
