"""The model of a step's milliseconds against sums done by hand; nothing here is a measurement."""

from __future__ import annotations

import json

import pytest

from benchmarks import step_model
from benchmarks.step_model import attention_ms, cards, estimate, gemm_ms, modelled, table

CARD = {
    "bandwidth": 2000.0,
    "matmul": 500.0,
    "node_us": 2.0,
    "eager_share": 0.5,
    "ceiling": 1000.0,
    "exp_per_clk_sm": 16,
    "sms": 100,
    "clock_ghz": 1.0,
    "forms": {"flash": [200.0, 100.0], "ours": 0.5},
}
ROW = {
    "nodes": 1000,
    "gb": 20.0,
    "gb_by_class": {"gemm": 4.0, "attention": 2.0, "inductor": 4.0, "ours": 3.0, "copy": 7.0},
    # The first is bound by its FLOP, the second by its bytes.
    "gemms": [[1, 10_000, 5_000, 5_000, 2, 1.0], [1, 1000, 10, 10, 1, 3.0]],
    "gemms_of_ours": [[1, 10_000, 5_000, 5_000, 1, 1.0]],
    "attentions": [[1000, 1000, 1000, 32, 0, 1, 0.1], [1000, 1000, 1000, 32, 1, 1, 0.1]],
}


def test_products_are_bound_by_flop_or_bytes() -> None:
    assert gemm_ms(ROW, CARD) == pytest.approx(3 * 2 * 2.5e11 / 500e12 * 1e3 + 3.0 / 2.0)


def test_attention_at_rates_and_at_a_share_of_its_bound() -> None:
    # 1e9 scores of 32 numbers: 0.128 TFLOP forward, 0.32 backward in PyTorch's form.
    assert attention_ms(ROW, CARD, [200.0, 100.0]) == pytest.approx(0.128 / 0.2 + 0.32 / 0.1)
    exps = 1e9 / (16 * 100 * 1e9) * 1e3
    # Ours makes the exponentials of a long backward twice, beside seven products: 0.448 TFLOP.
    assert attention_ms(ROW, CARD, 0.5) == pytest.approx(exps / 0.5 + 2 * exps / 0.5)
    assert attention_ms(ROW, CARD, 10.0) == pytest.approx(0.128 / 0.5 + 0.448 / 0.5)
    short = ROW | {"attentions": [[10_000, 100, 100, 32, 1, 1, 0.1]]}
    assert attention_ms(short, CARD, 0.5) == pytest.approx(max(0.1 * exps / 0.5, 0.032 / 0.5))


def test_step_is_the_sum_of_its_parts() -> None:
    found = estimate(ROW, CARD, [200.0, 100.0])
    # Of the 7 GB that compiler and project move, one is in a product.
    assert found.fused_kernels == pytest.approx(6.0 / 2.0)
    assert found.torch_kernels == pytest.approx(7.0 / (2.0 * 0.5))
    assert found.nodes == pytest.approx(2.0)
    parts = gemm_ms(ROW, CARD) + attention_ms(ROW, CARD, [200.0, 100.0])
    assert found.total == pytest.approx(parts + 3.0 + 7.0 + 2.0)


def test_every_card_models_every_row() -> None:
    ledger = json.loads(step_model.LEDGER.read_text())
    assert set(cards()) == {"A100", "H100", "H200"}
    for name, card in cards().items():
        assert set(CARD) <= set(card)
        text = "\n".join(table(ledger, name, card))
        assert "modelled, not measured" in text
        for case in ledger["rows"]:
            assert (case in text) == ("fp32" not in case)
        # Twice the bandwidth is never slower.
        row = ledger["rows"]["sjepa-ntu60-xsub bf16 on"]
        faster = card | {"bandwidth": 2 * card["bandwidth"]}
        assert estimate(row, faster, 0.6).total < estimate(row, card, 0.6).total


def test_forms_are_those_that_a_step_can_have() -> None:
    assert modelled("sjepa-ntu60-xsub bf16 triton", "ours")
    assert not modelled("sjepa-ntu60-xsub bf16 triton", "flash")
    assert modelled("reference-D bf16", "ours") and not modelled("a fp32 on", "flash")
