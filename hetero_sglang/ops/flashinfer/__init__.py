"""FlashInfer's decode over per-head index lists."""
