"""What a head wants: scores and rules of change, pure functions over tensors."""
