"""Tests of the collective traffic that is read from compiled programs."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from fmjax.planning.collectives import BETWEEN_SLICES, Traffic, collectives
from fmjax.sharding import MeshConfig, make_mesh


def compiled_text(fn, mesh, in_specs, out_specs, *shapes):
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


def test_collectives_inside_scan_are_counted():
    mesh = make_mesh(MeshConfig(2, 4))
    split = PartitionSpec("fsdp")

    def fn(x):  # [8, 16] on each of four devices
        def body(carry, _):
            full = jax.lax.all_gather(carry, "fsdp", tiled=True)  # [32, 16]
            return carry + jax.lax.psum_scatter(full, "fsdp", tiled=True), None

        x, _ = jax.lax.scan(body, x, length=7)
        return jax.lax.psum(x, "data")

    traffic = collectives(compiled_text(fn, mesh, split, split, (32, 16)))
    full, shard = 4 * 32 * 16, 4 * 8 * 16
    assert traffic["all-gather"] == Traffic(7, 7 * full, 7 * full * 3 / 4)
    assert traffic["reduce-scatter"] == Traffic(7, 7 * shard, 7 * shard * 3)
    assert traffic["all-reduce"] == Traffic(1, shard, shard)  # Each of two devices sends 2 * 1/2.


def test_kernel_config_is_skipped_and_collective_parts_are_merged():
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


def test_combined_sums_and_both_conditional_branches_are_counted():
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
def test_replica_groups_are_parsed_in_all_xla_formats(groups, devices):
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
    ("name", "groups", "across"),
    [  # 8 devices in 2 slices; the result has 1,024 bytes per device.
        ("all-reduce", "replica_groups={{0,1,2,3},{4,5,6,7}}", 0),
        ("all-reduce", "replica_groups=[4,2]<=[2,4]T(1,0)", 1024),  # Pairs {0, 4}, {1, 5}, ...
        ("all-reduce", "replica_groups=mesh['a'=2,'b'=4] {'a'}", 1024),
        ("all-reduce", "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 1024),
        # Each device sends a quarter, after a sum within the slice.
        ("all-reduce", "replica_groups=[1,8]<=[8]", 1024 / 4),
        ("all-gather", "replica_groups=[1,8]<=[8]", 512 / 4),
        ("reduce-scatter", "replica_groups=[1,8]<=[8]", 1024),
        ("all-to-all", "replica_groups=[1,8]<=[8]", 512),
        ("collective-permute", "source_target_pairs={{0,1},{3,4}}", 1024),
        ("collective-permute", "source_target_pairs={{0,1},{5,4}}", 0),
    ],
)
def test_traffic_between_slices_is_counted(name, groups, across):
    text = "\n".join(
        [
            "ENTRY %main (p: f32[256]) -> f32[256] {",
            f"  ROOT %a = f32[256] {name}(%p), {groups}",
            "}",
        ]
    )
    assert collectives(text, SLICES)[name].across == across
    assert collectives(text)[name].across == 0


@pytest.mark.parametrize(
    ("slices", "name", "sent"),
    [("1,2", "ALL_REDUCE", 1.0), ("1:16", "ALL_REDUCE", 1.875), ("1:16", "ALL_GATHER", 15.0)],
)
def test_tpu_host_transfers_between_slices_are_counted(slices, name, sent):
    text = "\n".join(
        [
            "ENTRY %main (p: f32[256]) -> f32[256] {",
            "  %send = (f32[256,8,128]{2,1,0:T(8,128)S(1)}, u32[], token[]) send(%b, %a), "
            "channel_id=2, is_host_transfer=true, frontend_attributes={"
            f'_xla_megascale_target="{{{slices}}}x{{0:3}}",_xla_megascale_transfer_type="{name}"}}',
            "  %d = token[] send-done(%s), channel_id=2, is_host_transfer=true",
            "}",
        ]
    )
    size = 4 * 256 * 8 * 128
    traffic = collectives(text)[BETWEEN_SLICES]
    assert traffic == Traffic(1, size, sent * size, sent * size)


def test_single_device_program_has_no_collectives():
    text = jax.jit(partial(jnp.sum, axis=0)).lower(jnp.ones((3, 4))).compile().as_text()
    assert collectives(text) == {}
