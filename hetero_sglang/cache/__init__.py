"""The tiers and who owns what: stores, pools, working sets, the admission ledger. No kernels, no SGLang."""
