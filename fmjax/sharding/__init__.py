"""Device meshes, array shardings, multi-process runs, and stopping at a step boundary."""

from fmjax.sharding.layout import (
    AXES as AXES,
    BATCH_AXES as BATCH_AXES,
    all_gather_fsdp as all_gather_fsdp,
    batch_axes as batch_axes,
    heads_spec as heads_spec,
    is_fsdp_sharded as is_fsdp_sharded,
    save_all_but_gathered as save_all_but_gathered,
    shard_batch as shard_batch,
    shard_heads as shard_heads,
    stored_spec as stored_spec,
)
from fmjax.sharding.map_batched import (
    even_batches as even_batches,
    map_batched as map_batched,
    on_mesh as on_mesh,
    padded_batch_size as padded_batch_size,
)
from fmjax.sharding.mesh import (
    MeshConfig as MeshConfig,
    abstract_batch as abstract_batch,
    batch_sharding as batch_sharding,
    bytes_held as bytes_held,
    make_mesh as make_mesh,
    num_shares as num_shares,
    put_batch as put_batch,
    replicated as replicated,
    require_batch_fits as require_batch_fits,
    require_rows_by_process as require_rows_by_process,
    state_sharding as state_sharding,
    with_shardings as with_shardings,
)
from fmjax.sharding.processes import (
    Processes as Processes,
    all_or_none as all_or_none,
    is_main as is_main,
    is_peer_failure as is_peer_failure,
    join as join,
)
from fmjax.sharding.stopping import (
    Interrupted as Interrupted,
    forward_preemption as forward_preemption,
)
