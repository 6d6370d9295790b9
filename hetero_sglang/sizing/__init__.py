"""What fits a GPU's memory, told before anything is started."""
