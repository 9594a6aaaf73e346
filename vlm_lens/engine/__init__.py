"""How a run happens: torch hooks on the untouched Hugging Face model, and the kernel of writes."""
