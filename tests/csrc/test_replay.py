"""The replay of compiled code: it reads scheduling bits, walks loops, and obeys the rates that it states."""

import pytest

from bench import csrc_replay
from bench.csrc_replay import Instruction, Rates

RATES = Rates(merged=False, global_latency=400, global_bytes=20.0)
EXIT = Instruction("EXIT", False, 1, (), ())

# A loop of three instructions, as nvdisasm prints it: the low and then the high eight bytes of each.
LISTING = """
.L_x_1:
        /*0010*/                   LDS.U.128 R120, [R168] ;          /* 0x00000000a8787984 */
                                                                     /* 0x000e620000000c00 */
        /*0020*/                   HMMA.884.F32.F32.STEP3 R166, R28.ROW, R120.COL, RZ ;  /* 0x000000781ca67236 */
                                                                     /* 0x002f4400000154ff */
        /*0030*/              @!P1 BRA `(.L_x_1) ;                   /* 0xffffffd000009947 */
                                                                     /* 0x000fea000383ffff */
        /*0040*/                   EXIT ;                            /* 0x000000000000794d */
                                                                     /* 0x000fea0003800000 */
"""


def clocks(code, warps=1, resident=1, blocks=1, table=None):
    order = list(range(len(code)))
    return csrc_replay.replay(code, [order] * warps, resident, blocks, table or {}, RATES)


def test_the_scheduling_bits_are_read():
    load, mma, branch, leave = csrc_replay.parse(LISTING)
    assert (load.opcode, load.bytes, load.pipe) == ("LDS.U.128", 16, "shared")
    assert (load.stall, load.sets, load.waits) == (1, (1,), ())
    assert (mma.pipe, mma.stall, mma.sets, mma.waits) == ("tensor", 2, (5,), (1,))
    assert branch.predicated and branch.target == 0
    assert leave.base == "EXIT"


def test_a_loop_is_walked_as_often_as_it_runs():
    code = csrc_replay.parse(LISTING)
    order = csrc_replay.walk(code, [3])
    assert order == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3]
    work = csrc_replay.work(code, order, {("LDS", 16): 8})
    assert (work["tensor"], work["port"], work["hmma"], work["issue"]) == (6, 24, 3, 10)


def test_mmas_fill_the_tensor_cores_of_four_schedulers():
    mmas = [Instruction("HMMA.884", False, 2, (), ())] * 400
    assert clocks([*mmas, EXIT]) == pytest.approx(800, abs=5)
    assert clocks([*mmas, EXIT], warps=4) == pytest.approx(800, abs=5)
    assert clocks([*mmas, EXIT], warps=8) == pytest.approx(1600, abs=5)


def test_one_port_of_shared_memory_serves_all_schedulers():
    loads = [Instruction("LDS.128", False, 2, (), ())] * 100
    assert clocks([*loads, EXIT], warps=4, table={("LDS", 16): 8}) == pytest.approx(3200, rel=0.02)


def test_a_result_is_waited_for_and_other_warps_use_the_time():
    chain = [Instruction("LDG.128", False, 1, (0,), ()), Instruction("FADD", False, 1, (), (0,))] * 10
    alone = clocks([*chain, EXIT])
    assert alone > 10 * RATES.global_latency
    assert clocks([*chain, EXIT], warps=8) < 2 * alone


def test_warps_of_a_block_meet_at_a_barrier():
    slow = [Instruction("MUFU.EX2", False, 1, (), ())] * 50
    meet = [Instruction("BAR.SYNC", False, 1, (), ()), EXIT]
    both = csrc_replay.replay([*slow, *meet], [list(range(52)), [50, 51]], 1, 1, {}, RATES)
    assert both > 50 * csrc_replay.BUSY["slow"]


def test_a_new_table_of_kernels_leaves_the_estimates_below_it(tmp_path):
    pytest.importorskip("triton")
    from bench import csrc_facts, offline

    path = tmp_path / "offline.md"
    path.write_text(f"old table\n\n{csrc_facts.HEADING}\n\nestimates\n")
    offline.write_markdown([], path)
    text = path.read_text()
    assert "old table" not in text
    assert text.endswith(f"\n\n{csrc_facts.HEADING}\n\nestimates\n")
