"""What is read off a program's text, against programs whose traffic is known."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from fmjax.planning.collectives import BETWEEN_SLICES, Traffic, collectives
from fmjax.sharding import MeshConfig, make_mesh


def program(fn, mesh, in_specs, out_specs, *shapes):
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


def test_kinds_counts_and_bytes_of_collectives_also_inside_a_scan():
    mesh = make_mesh(MeshConfig(2, 4))
    split = PartitionSpec("fsdp")

    def fn(x):  # [8, 16] on each of four devices
        def body(carry, _):
            whole = jax.lax.all_gather(carry, "fsdp", tiled=True)  # [32, 16]
            return carry + jax.lax.psum_scatter(whole, "fsdp", tiled=True), None

        x, _ = jax.lax.scan(body, x, length=7)
        return jax.lax.psum(x, "data")

    found = collectives(program(fn, mesh, split, split, (32, 16)))
    whole, part = 4 * 32 * 16, 4 * 8 * 16
    assert found["all-gather"] == Traffic(7, 7 * whole, 7 * whole * 3 / 4)
    assert found["reduce-scatter"] == Traffic(7, 7 * part, 7 * part * 3)
    assert found["all-reduce"] == Traffic(1, part, part)  # Of two: 2 * 1/2 of it.


def test_a_kernels_lines_end_no_computation_and_parts_of_one_collective_are_one():
    gather = "bf16[8,4]{1,0} all-gather(%a), channel_id=7, replica_groups={{0,1}}, dimensions={0}"
    text = "\n".join(
        [
            "%start (p: bf16[4,4]) -> bf16[8,4] {",
            f"  %part = {gather}",
            "}",
            "%done (p: bf16[4,4]) -> bf16[8,4] {",
            f"  %part = {gather}",
            "}",
            "ENTRY %main (p: bf16[4,4]) -> bf16[8,4] {",
            "  %kernel = bf16[4,4] custom-call(%p), custom_call_target=x, backend_config={{",
            "}}, metadata={}",
            "  %one = bf16[8,4] fusion(%kernel), kind=kCustom, calls=%start",
            "  ROOT %two = bf16[8,4] fusion(%one), kind=kCustom, calls=%done",
            "}",
        ]
    )
    assert collectives(text) == {"all-gather": Traffic(1, 64.0, 32.0)}


def test_combined_sums_and_both_branches_of_a_conditional_count():
    groups = "replica_groups={{0,1}}, to_apply=%add"
    text = "\n".join(
        [
            "%yes (p: f32[1000]) -> f32[1000] {",
            f"  ROOT %a = f32[1000] all-reduce(%p), channel_id=1, {groups}",
            "}",
            "%no (p: f32[1000]) -> f32[1000] {",
            f"  ROOT %b = f32[1000] all-reduce(%p), channel_id=2, {groups}",
            "}",
            "ENTRY %main (p: f32[1000]) -> f32[1000] {",
            f"  %s = (f32[1000], f32[1000]) all-reduce-start(%p, %q), channel_id=3, {groups}",
            "  ROOT %c = f32[1000] conditional(%i, %p, %p), branch_computations={%yes, %no}",
            "}",
        ]
    )
    assert collectives(text)["all-reduce"] == Traffic(3, 4 * 4000.0, 4 * 4000.0)


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0','axis_1'}", 8),
    ],
)
def test_groups_are_read_in_every_form_that_xla_writes(groups, devices):
    text = "\n".join(
        [
            "%condition (p: (s32[], f32[10])) -> pred[] {",
            "  %limit = s32[]{:T(128)} constant(12)",
            "  ROOT %lt = pred[] compare(%i, %limit), direction=LT",
            "}",
            "%body (p: (s32[], f32[10])) -> (s32[], f32[10]) {",
            "  %start = (f32[5]{0}, bf16[5]{0}, f32[10]{0}, bf16[10]{0}) all-gather-start(%a, %b), "
            f"replica_groups={groups}, dimensions={{0}}",
            "}",
            "ENTRY %main (p: f32[10]) -> f32[10] {",
            "  %loop = (s32[], f32[10]) while(%t), condition=%condition, body=%body",
            "}",
        ]
    )
    (traffic,) = collectives(text).values()
    assert traffic.count == 12
    assert traffic.bytes == 12 * (40 + 20)
    assert traffic.sent == pytest.approx(12 * 60 * (devices - 1) / devices)


SLICES = (0, 0, 0, 0, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("kind", "groups", "across"),
    [  # 8 devices in 2 slices; the result is 1,024 bytes on each.
        ("all-reduce", "replica_groups={{0,1,2,3},{4,5,6,7}}", 0),
        ("all-reduce", "replica_groups=[4,2]<=[2,4]T(1,0)", 1024),  # Pairs {0, 4}, {1, 5}, ..
        ("all-reduce", "replica_groups=mesh['a'=2,'b'=4] {'a'}", 1024),
        ("all-reduce", "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 1024),
        ("all-reduce", "replica_groups=[1,8]<=[8]", 1024 / 4),  # A quarter each, summed first.
        ("all-gather", "replica_groups=[1,8]<=[8]", 512 / 4),
        ("reduce-scatter", "replica_groups=[1,8]<=[8]", 1024),
        ("all-to-all", "replica_groups=[1,8]<=[8]", 512),
        ("collective-permute", "source_target_pairs={{0,1},{3,4}}", 1024),
        ("collective-permute", "source_target_pairs={{0,1},{5,4}}", 0),
    ],
)
def test_what_leaves_a_slice_is_told_apart(kind, groups, across):
    text = "\n".join(
        [
            "ENTRY %main (p: f32[256]) -> f32[256] {",
            f"  ROOT %a = f32[256] {kind}(%p), {groups}",
            "}",
        ]
    )
    assert collectives(text, SLICES)[kind].across == across
    assert collectives(text)[kind].across == 0


@pytest.mark.parametrize(
    ("slices", "kind", "sent"),
    [("1,2", "ALL_REDUCE", 1.0), ("1:16", "ALL_REDUCE", 1.875), ("1:16", "ALL_GATHER", 15.0)],
)
def test_what_goes_between_tpu_slices_is_sent_and_received_by_the_hosts(slices, kind, sent):
    text = "\n".join(
        [
            "ENTRY %main (p: f32[256]) -> f32[256] {",
            "  %send = (f32[256,8,128]{2,1,0:T(8,128)S(1)}, u32[], token[]) send(%b, %a), "
            "channel_id=2, is_host_transfer=true, frontend_attributes={"
            f'_xla_megascale_target="{{{slices}}}x{{0:3}}",_xla_megascale_transfer_type="{kind}"}}',
            "  %d = token[] send-done(%s), channel_id=2, is_host_transfer=true",
            "}",
        ]
    )
    size = 4 * 256 * 8 * 128
    found = collectives(text)[BETWEEN_SLICES]
    assert found == Traffic(1, size, sent * size, sent * size)


def test_a_program_for_one_device_sends_nothing():
    text = jax.jit(partial(jnp.sum, axis=0)).lower(jnp.ones((3, 4))).compile().as_text()
    assert collectives(text) == {}
