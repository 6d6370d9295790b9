"""What flags of fixed choice take. Names alone, for whoever should import neither SGLang nor torch to know them."""

POLICIES = ["full", "heterocache", "streamingllm", "snapkv", "quest", "chunkkv", "rocketkv", "fier", "kvcluster"]
RETRIEVAL = ["accumulate", "replace", "off"]
ROLES = ["profile", "ratio"]
ABLATIONS = ["none", "uniform", "no-clusters", "layer-wise"]
INDEXES = ["auto", "directions", "none"]
DECODE_KERNELS = ["auto", "flashinfer", "triton"]
APPENDS = ["auto", "sparse", "exact"]
EXIT_KV = ["deferred", "copied"]
CHOICES = {
    "kv_policy": POLICIES,
    "hetero_retrieval": RETRIEVAL,
    "hetero_roles": ROLES,
    "hetero_ablation": ABLATIONS,
    "hetero_index": INDEXES,
    "hetero_decode_kernel": DECODE_KERNELS,
    "hetero_append": APPENDS,
    "hetero_exit_kv": EXIT_KV,
}
