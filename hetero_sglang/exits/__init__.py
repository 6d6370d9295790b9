"""Early exit: branches behind some layers of a model, how sure they are, and the file that keeps them."""
