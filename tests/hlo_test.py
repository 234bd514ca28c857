"""The HLO reader against programs whose cost is known by hand, compiled for the CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from distill_jax.hlo_cost import analyse

LAYERS, BATCH, WIDTH, HIDDEN = 6, 32, 64, 128


def mesh_of(fsdp, tensor):
  devices = np.array(jax.devices()[: fsdp * tensor]).reshape(fsdp, tensor)
  return jax.sharding.Mesh(devices, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def mlp_step(mesh, unroll):
  """A step that learns a residual MLP and its input, and the step's arguments."""

  def array(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, jax.P(*spec)))

  params = {
    "up": array((LAYERS, WIDTH, HIDDEN), None, "fsdp", "tensor"),
    "down": array((LAYERS, HIDDEN, WIDTH), None, "tensor", "fsdp"),
  }
  x = array((BATCH, WIDTH), "fsdp")

  def loss(params, x):
    def layer(h, w):
      h = h + jax.nn.relu(h @ w["up"]) @ w["down"]
      return jax.lax.with_sharding_constraint(h, NamedSharding(mesh, jax.P("fsdp"))), None

    return jnp.sum(jax.lax.scan(layer, x, params, unroll=unroll)[0] ** 2)

  def step(params, x):
    gradients = jax.grad(loss, argnums=(0, 1))(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, (params, x), gradients)

  return jax.jit(step, donate_argnums=(0, 1)), (params, x)


MLP_FLOPS = 6 * LAYERS * 2 * BATCH * WIDTH * HIDDEN  # of a layer: two products forward, four back


def cost(function, *arguments):
  return analyse(jax.jit(function).lower(*arguments).compile().as_text())


def without_counts(text):
  """As the TPU compiler writes it."""
  stripped = re.sub(r'"known_trip_count":\{[^}]*\},?', "", text)
  assert stripped != text
  return stripped


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (4, 2)])
def test_scanned_flops_are_unrolled_flops_are_the_formula(shape):
  def text(unroll):
    step, arguments = mlp_step(mesh_of(*shape), unroll)
    return step.lower(*arguments).compile().as_text()

  scanned = text(1)
  assert "while(" in scanned
  assert analyse(scanned).flops == MLP_FLOPS / np.prod(shape)
  assert analyse(without_counts(scanned)) == analyse(scanned)
  assert analyse(text(LAYERS)).flops == MLP_FLOPS / np.prod(shape)


def test_xla_itself_counts_the_unrolled_program_the_same():
  a, b = jnp.ones((48, 32)), jnp.ones((32, 40))
  compiled = jax.jit(jnp.dot).lower(a, b).compile()
  assert analyse(compiled.as_text()).flops == compiled.cost_analysis()["flops"] == 2 * 48 * 32 * 40


def test_nested_scans_multiply():
  def inner(h, w):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, length=5)[0], None

  text = (
    jax.jit(lambda h, ws: jax.lax.scan(inner, h, ws)[0])
    .lower(jnp.ones((16, 16)), jnp.ones((3, 16, 16)))
    .compile()
    .as_text()
  )
  assert analyse(text).flops == 3 * 5 * 2 * 16**3
  assert analyse(without_counts(text)).flops == 3 * 5 * 2 * 16**3


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  def until_large(h):
    return jax.lax.while_loop(lambda h: jnp.sum(h) < 100, lambda h: h @ h, h)

  found = cost(until_large, jnp.ones((16, 16)))
  assert found.flops == 2 * 16**3
  assert len(found.unknown_loops) == 1 and "while" in found.unknown_loops[0]


def test_a_conditional_counts_as_its_largest_branch():
  def power(n):
    def branch(h):
      for _ in range(n):
        h = jnp.tanh(h @ h)
      return h

    return branch

  h = jnp.ones((16, 16))
  switch = cost(lambda i, h: jax.lax.switch(i, [power(1), power(4), power(2)], h), 1, h)
  assert switch.flops == 4 * 2 * 16**3
  cond = cost(lambda i, h: jax.lax.cond(i > 0, power(3), power(0), h), 1, h)
  assert cond.flops == 3 * 2 * 16**3


@pytest.mark.parametrize(
  "options",
  [
    dict(window_strides=(1, 1), padding="SAME"),
    dict(window_strides=(2, 3), padding="SAME"),
    dict(window_strides=(1, 2), padding="VALID", rhs_dilation=(2, 1)),
    dict(window_strides=(1, 1), padding=((2, 1), (0, 3)), lhs_dilation=(2, 3)),
    dict(window_strides=(2, 2), padding=((-1, 2), (1, 1)), feature_group_count=2),
    dict(window_strides=(1, 1), padding="SAME", batch_group_count=2),
  ],
)
def test_convolution_flops_count_the_taps_that_hit_data(options):
  """A convolution of ones with ones counts them itself."""
  groups = options.get("feature_group_count", 1)
  x, w = jnp.ones((2, 11, 13, 8)), jnp.ones((3, 5, 8 // groups, 6))

  def convolve(x, w):
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

  assert cost(convolve, x, w).flops == 2 * float(convolve(x, w).sum())


def test_collectives_have_their_kind_group_times_and_bytes():
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  rows, times = 8, 5
  local = 4 * rows * 16  # bytes of one device's float32[8, 16]

  def body(x, _):
    gathered = jax.lax.all_gather(x, "a", tiled=True)
    scattered = jax.lax.psum_scatter(jnp.sin(gathered), "a", tiled=True)
    summed = jax.lax.psum(jnp.cos(scattered), "b")
    turned = jax.lax.ppermute(jnp.sin(summed), "a", [(i, (i + 1) % 4) for i in range(4)])
    return jax.lax.all_to_all(jnp.cos(turned), "b", 0, 0, tiled=True), None

  def loop(x):
    return jax.lax.scan(body, x, length=times)[0]

  spec = jax.P(("a", "b"))
  x = jax.ShapeDtypeStruct((8 * rows, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
  mapped = jax.shard_map(loop, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  assert cost(mapped, x).collectives == {
    ("all-gather", 4): [times, times * 4 * local, times * 3 * local],
    ("reduce-scatter", 4): [times, times * 4 * local, times * 3 * local],
    ("all-reduce", 2): [times, times * local, times * local],
    ("collective-permute", 2): [times, times * local, times * local],
    ("all-to-all", 2): [times, times * local, times * local / 2],
  }


def test_memory_traffic_of_one_pass_is_its_operands_and_result():
  x = jnp.ones((256, 1024))
  assert cost(lambda x, y: jnp.sin(x) + y, x, x).hbm_bytes == 3 * x.nbytes


def test_a_scan_reads_slices_not_the_whole_stack():
  stack = jnp.ones((50, 64, 64))
  found = cost(
    lambda c, xs: jax.lax.scan(lambda c, x: (jnp.sin(c) * x, None), c, xs)[0], stack[0], stack
  )
  assert stack.nbytes <= found.hbm_bytes <= 6 * stack.nbytes  # 50 times that, if read whole


TPU_PROGRAM = """HloModule step, is_scheduled=true, num_partitions=8

%start (p.0: bf16[8,128]) -> (bf16[8,128], bf16[32,128], u32[]) {
  %p.0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.0 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %custom.0 = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[32,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%gather.0), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.1: bf16[8,128], p.2: bf16[32,128], p.3: u32[], p.4: bf16[4,64,128]) -> (bf16[64,64], bf16[8,128], bf16[32,128], u32[]) {
  %p.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.2 = bf16[32,128]{1,0:T(8,128)(2,1)} parameter(1)
  %p.3 = u32[]{:S(2)} parameter(2)
  %p.4 = bf16[4,64,128]{2,1,0:T(8,128)(2,1)} parameter(3)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p.4, %zero, %zero, %zero), dynamic_slice_sizes={1,64,128}
  %flat = bf16[64,128]{1,0:T(8,128)(2,1)} bitcast(%slice)
  %product = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} convolution(%flat, %flat), dim_labels=bf_oi->bf
  %gather.1 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %tuple.1 = (bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[32,128]{1,0:T(8,128)(2,1)}, /*index=3*/u32[]{:S(2)}) tuple(%product, %p.1, %p.2, %p.3)
}

%done (p.5: bf16[8,128], p.6: bf16[32,128], p.7: u32[]) -> bf16[32,128] {
  %p.5 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.6 = bf16[32,128]{1,0:T(8,128)(2,1)} parameter(1)
  %p.7 = u32[]{:S(2)} parameter(2)
  %gather.2 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p.5), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %custom.2 = bf16[32,128]{1,0:T(8,128)(2,1)} custom-call(%p.6, %gather.2, %p.7), custom_call_target="AsyncCollectiveDone"
}

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%all-reduce-scatter.3 (p.8: bf16[32,128]) -> bf16[8,128] {
  %p.8 = bf16[32,128]{1,0:T(8,128)(2,1)} parameter(0)
  %reduce = bf16[32,128]{1,0:T(8,128)(2,1)} all-reduce(%p.8), channel_id=9, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %origin = s32[]{:T(128)} constant(0)
  ROOT %part = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%reduce, %origin, %origin), dynamic_slice_sizes={8,128}
}

%body (state: (s32[], bf16[8,128], bf16[4,64,128], s32[])) -> (s32[], bf16[8,128], bf16[4,64,128], s32[]) {
  %state = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[4,64,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %step = s32[]{:T(128)} get-tuple-element(%state), index=3
  %kept = s32[]{:T(128)S(6)} copy(%turn)
  %next = s32[]{:T(128)} subtract(%kept, %step)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %w = bf16[4,64,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %begun = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[32,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%x), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%start
  %begun.0 = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%begun), index=0
  %begun.1 = bf16[32,128]{1,0:T(8,128)(2,1)} get-tuple-element(%begun), index=1
  %begun.2 = u32[]{:S(2)} get-tuple-element(%begun), index=2
  %both = (bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[32,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%begun.0, %begun.1, %begun.2, %w), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (2, {})}, calls=%async_collective_fusion.1
  %both.1 = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%both), index=1
  %both.2 = bf16[32,128]{1,0:T(8,128)(2,1)} get-tuple-element(%both), index=2
  %both.3 = u32[]{:S(2)} get-tuple-element(%both), index=3
  %whole = bf16[32,128]{1,0:T(8,128)(2,1)} fusion(%both.1, %both.2, %both.3), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%done
  %again = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.3
  %placed = bf16[8,128]{1,0:T(8,128)(2,1)} copy(%again)
  ROOT %new = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[4,64,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%next, %placed, %w, %step)
}

%condition (tested: (s32[], bf16[8,128], bf16[4,64,128], s32[])) -> pred[] {
  %tested = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[4,64,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %now = s32[]{:T(128)} get-tuple-element(%tested), index=0
  %limit = s32[]{:T(128)} constant(-2)
  ROOT %on = pred[]{:T(512)} compare(%limit, %now), direction=LE
}

ENTRY %main (x.1: bf16[8,128], w.1: bf16[4,64,128]) -> bf16[8,128] {
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w.1 = bf16[4,64,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %begin = s32[]{:T(128)} constant(10)
  %by = s32[]{:T(128)} constant(3)
  %first = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[4,64,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%begin, %x.1, %w.1, %by)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[4,64,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) while(%first), condition=%condition, body=%body
  %out = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
  %moved = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%out)
  %there = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%moved)
  %kernel = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} custom-call(%there), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"","cost_estimate":{"flops":"1000","transcendentals":"0","bytes_accessed":"8"}}}
  %other = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} custom-call(%kernel), custom_call_target="Mystery"
  ROOT %end = bf16[8,128]{1,0:T(8,128)(2,1)} copy(%other)
}
"""  # noqa: E501


def test_a_tpu_program():
  """Its idioms: no trip counts, one collective in three fusions, on-chip buffers, custom calls."""
  found, turns = analyse(TPU_PROGRAM), 5  # 10, 7, 4, 1, -2
  assert found.flops == turns * 2 * 64 * 64 * 128 + 1000
  shard, gathered = 2 * 8 * 128, 2 * 32 * 128
  assert found.collectives == {
    ("all-gather", 4): [turns, turns * gathered, turns * gathered * 3 / 4],
    ("reduce-scatter", 4): [turns, turns * gathered, turns * gathered * 3 / 4],
  }
  weights = 2 * 64 * 128  # one slice of four
  scalars = 4 + 8  # the counter is copied to on-chip memory; its decrement is not
  read_and_written = gathered + shard + weights + gathered + shard + scalars
  assert found.hbm_bytes == turns * read_and_written + 2 * shard
  assert found.custom_calls == {"Mystery": 1}
  assert not found.unknown_loops


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
    ("replica_groups=[16,16]<=[256]", 16),
    ("replica_groups={{0,1},{2,3}}", 2),
    ("replica_groups={}", 8),
    ("replica_groups=mesh['x'=4,'y'=2] {'x'}", 4),
    ("replica_groups=mesh['x'=4,'y'=2] {'x','y'}", 8),
    ("replica_groups=mesh['x'=4,'y'=2] {'x':(2)2,'y'}", 4),
  ],
)
def test_replica_groups_in_every_form(groups, size):
  program = f"""HloModule m, num_partitions=8

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0)
  ROOT %y = f32[4]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add
}}
"""
  assert list(analyse(program).collectives) == [("all-reduce", size)]


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    analyse("HloModule empty")
