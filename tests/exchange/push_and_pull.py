"""A push, a subscription, a second push and a pull; in a process of its own, since the client reads HF_ENDPOINT once."""

import json
import sys
from pathlib import Path

from huggingface_hub import HfApi

from pmemx.core.errors import StorageError
from pmemx.exchange.hub import pull_from_hub, push_to_hub
from pmemx.exchange.subscription import subscribe, sync
from tests.exchange.banks import block, store

here, there, repo_id = store(Path(sys.argv[1])), store(Path(sys.argv[2])), sys.argv[3]
told: dict[str, object] = {}
told["url"] = push_to_hub(here.bank, ["law", "tax"], repo_id).url
subscribe(there.bank, f"hub:{repo_id}", "law@prod")
told["synced"] = [made.transfer is not None and made.transfer.changed for _ in range(2) for made in sync(there.bank)]
here.put(block(fill=2.0))
push_to_hub(here.bank, ["law"], repo_id)
told["pulled"] = [made.version.number for made in pull_from_hub(there.bank, f"hub:{repo_id}")]
try:
    pull_from_hub(there.bank, "hub:owner/other")
except StorageError as error:
    told["missing"] = str(error)
try:
    push_to_hub(here.bank, ["law"], repo_id, api=HfApi(endpoint="http://127.0.0.1:1", token="hf_test"))
except StorageError as error:
    told["unreachable"] = str(error)
print(json.dumps(told))
