# SPDX-License-Identifier: Apache-2.0
"""YAML as configurations need it: mappings, lists and plain values, and nothing that expands.

An alias stands for all that its anchor names, so a few hundred bytes of them are gigabytes. No
configuration needs anchors, tags, merges or deep nesting, so they are refused.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node

# Sections and keys are two levels.
DEEPEST = 8


class _Plain(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self.refused(event, "an anchor or alias", "write the value out")
        if getattr(event, "tag", None) is not None:
            raise self.refused(event, f"the tag {event.tag}", "write plain values")
        if self.depth == DEEPEST:
            raise self.refused(event, "more nesting than a configuration has", "flatten it")
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise self.refused(key, f"the key {key.value} twice", "keep one")
            if key.tag == "tag:yaml.org,2002:merge":
                raise self.refused(key, "a merge", "write the keys out")
            seen.add(name)

    def refused(self, place: Any, what: str, fix: str) -> yaml.YAMLError:
        line = place.start_mark.line + 1
        return yaml.YAMLError(f"{what} in line {line}: {fix}")


def plain_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises ValueError, with the reason, if it is no YAML, uses anchors, aliases, tags or merges, has
    a key twice in a mapping, or is nested more than 8 deep.
    """
    try:
        return yaml.load(text, Loader=_Plain)
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error
