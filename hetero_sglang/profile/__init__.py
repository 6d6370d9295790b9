"""What each KV head does: finding it out (calibration), keeping it (JSON files) and spending by it (budgets)."""
