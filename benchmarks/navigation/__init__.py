"""Navigation: a small model finds its way through partially observed worlds, on a machine with little memory."""
