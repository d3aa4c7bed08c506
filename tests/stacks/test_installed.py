"""What does not change while a process runs is asked once, in a process of its own: it stays so to the end."""

import subprocess
import sys

SCRIPT = """
import importlib.metadata as metadata
import inspect

from stacks.installed import remember_installed

for _ in range(2):
    remember_installed()
from zenml.utils import source_code_utils
from zenml.steps.base_step import BaseStep

asked = []
plain = inspect.getsource
inspect.getsource = lambda value: asked.append(value) or plain(value)
texts = {source_code_utils.get_source_code(BaseStep) for _ in range(3)}
hashes = {source_code_utils.get_hashed_source_code(BaseStep) for _ in range(3)}
assert len(texts) == len(hashes) == 1 and texts.pop() == plain(BaseStep), (texts, hashes)
assert asked == [BaseStep], asked
assert metadata.packages_distributions() is metadata.packages_distributions()
assert metadata.version("zenml") == metadata.distribution("zenml").version
assert not hasattr(metadata.version.__wrapped__, "__wrapped__")

from types import SimpleNamespace
from pydantic import BaseModel
from zenml.materializers.pydantic_materializer import PydanticMaterializer

class Kept(BaseModel):
    number: int

made = []
schema = Kept.model_json_schema
Kept.model_json_schema = classmethod(lambda kind: made.append(kind) or schema())
metadata_of = [PydanticMaterializer.extract_metadata(SimpleNamespace(), Kept(number=n)) for n in range(3)]
assert made == [Kept] and metadata_of == [{"schema": schema()}] * 3, (made, metadata_of)
print("once")
"""


def test_source_code_and_distributions_are_read_once() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["once"], done.stderr
