"""Text and pictures to tensors with coordinates: prompts, the question-answer template, chat."""
