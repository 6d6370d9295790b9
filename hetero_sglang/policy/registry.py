"""Every policy by the name that `--kv-policy` takes. One line registers one."""

from hetero_sglang.policy.base import Policy
from hetero_sglang.policy.chunkkv import ChunkKV
from hetero_sglang.policy.fier import Fier
from hetero_sglang.policy.heterocache import HeteroCache
from hetero_sglang.policy.kvcluster import KVCluster
from hetero_sglang.policy.quest import Quest
from hetero_sglang.policy.rocketkv import RocketKV
from hetero_sglang.policy.snapkv import SnapKV
from hetero_sglang.policy.streamingllm import StreamingLLM

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        HeteroCache,
        StreamingLLM,
        SnapKV,
        ChunkKV,
        Quest,
        Fier,
        RocketKV,
        KVCluster,
    )
}
