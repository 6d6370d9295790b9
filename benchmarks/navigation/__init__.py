"""Navigation: a small model finds its way through partially observed worlds, served with all that small machines need."""
