"""Job -> the Kubernetes objects that belong to it: member pods, headless Service, disruption budget, account, policy.

Pure. Every object is owned by the job, so deleting the job leaves nothing behind. Pods satisfy Pod Security
`restricted`. The user's template is merged by name into the generated pod and wins wherever both speak.
"""

from llmtrain_operator.manifests.children import children
from llmtrain_operator.manifests.container import agent_command, torchrun_environment
from llmtrain_operator.manifests.identity import pod_name, selector
from llmtrain_operator.manifests.pod import member_pod
from llmtrain_operator.manifests.settings import Settings, like
from llmtrain_operator.manifests.volumes import AGENT_DIRECTORY

__all__ = [
    "AGENT_DIRECTORY",
    "Settings",
    "agent_command",
    "children",
    "like",
    "member_pod",
    "pod_name",
    "selector",
    "torchrun_environment",
]
