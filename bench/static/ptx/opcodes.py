r"""The whitelist: every opcode the emulator runs, with all its modifiers.

An opcode that is not here raises `UnsupportedError`; none is guessed from its neighbours. Braces
stand for alternatives, as in a shell: "add.{u,s}{16,32}" is four opcodes. Sections of the PTX ISA
are named at each group.

    python -c "from bench.static.ptx.opcodes import OPCODES; print(*sorted(OPCODES), sep='\n')"
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bench.static.ptx import (
    access,
    atomics,
    block_scale,
    integers,
    numerics,
    tensor_core,
    warp,
    warpgroup,
)
from bench.static.ptx.compute import (
    Operation,
    approximate,
    bind_barrier,
    bind_branch,
    bind_compare,
    bind_dot4,
    bind_exit,
    bind_lookup,
    bind_move,
    bind_nothing,
    bind_permute,
    bind_policy,
    bind_select,
    bind_trap,
    compute,
    conversions,
    floating,
    integer,
    mixed,
    native_float32,
    predicate,
    table,
    wide,
)
from bench.static.ptx.errors import UnsupportedError

if TYPE_CHECKING:
    from bench.static.ptx.program import Instruction

INTEGERS = "{u,s}{16,32,64}"
ORDERS = "{relaxed,acquire,release,acq_rel}"
WGMMA = (
    "wgmma.mma_async.sync.aligned.m64n{8,16,24,32,40,48,56,64,72,80,88,96,104,112,120,128,192,256}"
)
SCOPES = "{cta,gpu,sys}"
ATOMIC = (  # nvcc's form, the ISA's and the two orders that Triton writes
    f"{{.{{global,shared}},.{ORDERS}.{SCOPES}.{{global,shared}},"
    f".{{global,shared}}.{ORDERS}.{SCOPES},.{{global,shared}}.{SCOPES}.{ORDERS}}}"
)
HALVES = "{f16,bf16,f16x2,bf16x2}"
FLOATS = "{f32,f16,bf16,f16x2,bf16x2}"

ADVICE = {
    "tcgen05": "test the kernel's sm_80 or sm_120 build, which uses mma.sync.",
    "mbarrier": "test the kernel's sm_80 build, which uses cp.async and bar.sync.",
    "cp.async.bulk": "test the kernel's sm_80 build, which uses cp.async.",
    "barrier.cluster": "launch without clusters, or test the sm_80 build.",
    "fence.proxy": "test the kernel's sm_80 build, which has no asynchronous proxy.",
}

OPCODES: dict[str, Operation] = {
    # Integer Arithmetic Instructions
    **integer("integer", f"add.{INTEGERS}", np.add, 2),
    **integer("integer", f"sub.{INTEGERS}", np.subtract, 2),
    **integer("integer", f"mul.lo.{INTEGERS}", integers.multiply_low, 2),
    **integer("integer", "mul.hi.{u,s}{16,32,64}", integers.multiply_high, 2),
    **integer("integer", f"mad.lo.{INTEGERS}", integers.multiply_add_low, 3),
    **wide("mul.wide.{u,s}{16,32}", integers.multiply_wide, 2),
    **wide("mad.wide.{u,s}{16,32}", integers.multiply_add_wide, 3),
    **integer("integer", f"div.{INTEGERS}", integers.divide, 2),
    **integer("integer", f"rem.{INTEGERS}", integers.remainder, 2),
    **integer("integer", f"min.{INTEGERS}", np.minimum, 2),
    **integer("integer", f"max.{INTEGERS}", np.maximum, 2),
    **integer("integer", "neg.s{16,32,64}", integers.negate, 1),
    **integer("integer", "abs.s{16,32,64}", np.abs, 1),
    **table("integer", "dp4a.{u,s}32.{u,s}32", bind_dot4),
    # Logic and Shift Instructions; bit fields
    **integer("logic", "and.b{16,32,64}", np.bitwise_and, 2),
    **integer("logic", "or.b{16,32,64}", np.bitwise_or, 2),
    **integer("logic", "xor.b{16,32,64}", np.bitwise_xor, 2),
    **integer("logic", "not.b{16,32,64}", np.bitwise_not, 1),
    **integer("logic", "shl.b{16,32,64}", integers.shift_left, 1, 1),
    **integer("logic", "shr.{u,s,b}{16,32,64}", integers.shift_right, 1, 1),
    **integer("logic", "bfe.{u,s}{32,64}", integers.extract, 1, 2),
    **integer("logic", "bfi.b{32,64}", integers.insert, 2, 2),
    **table("logic", "prmt.b32", bind_permute),
    **integer("logic", "brev.b{32,64}", integers.reverse, 1),
    **{
        opcode: Operation("logic", partial(compute, function=f, result="u32", kinds=(kind,)))
        for f, name in ((integers.leading_zeros, "clz"), (integers.population, "popc"))
        for kind in ("b32", "b64")
        for opcode in (f"{name}.{kind}",)
    },
    **{
        f"shf.{side}.{mode}.b32": Operation(
            "logic",
            partial(
                compute,
                function=partial(integers.funnel, left=side == "l", wrap=mode == "wrap"),
                result="b32",
                kinds=("b32", "b32", "u32"),
            ),
        )
        for side in "lr"
        for mode in ("wrap", "clamp")
    },
    **table("logic", "lop3.b32", bind_lookup),
    **predicate("and.pred", np.logical_and, 2),
    **predicate("or.pred", np.logical_or, 2),
    **predicate("xor.pred", np.logical_xor, 2),
    **predicate("not.pred", np.logical_not, 1),
    # Comparison and Selection Instructions
    **table("logic", "setp.{eq,ne,lt,le,gt,ge}{,.and,.or,.xor}.{u,s}{16,32,64}", bind_compare),
    **table("logic", "setp.{lo,ls,hi,hs}{,.and,.or,.xor}.u{16,32,64}", bind_compare),
    **table("logic", "setp.{eq,ne}{,.and,.or,.xor}.b{16,32,64}", bind_compare),
    **table(
        "logic",
        "setp.{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}{,.and,.or,.xor}.{f16,bf16,f32}",
        bind_compare,
    ),
    **table("logic", "selp.{b,u,s}{16,32,64}", bind_select),
    **table("logic", "selp.f32", bind_select),
    # Floating-Point and Half Precision Floating-Point Instructions
    **{
        opcode: operation
        for name, f in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply))
        for opcode, operation in native_float32(f"{name}{{,.rn}}.{{f32,f32x2}}", f).items()
    },
    **floating(f"add{{,.rn}}.{HALVES}", numerics.add, 2),
    **floating(f"sub{{,.rn}}.{HALVES}", numerics.subtract, 2),
    **floating(f"mul{{,.rn}}.{HALVES}", numerics.multiply, 2),
    **floating("fma.rn.{f32,f32x2}", numerics.fma, 3),
    **floating("add.{rm,rp,rz}.f32", numerics.add, 2),
    **floating("sub.{rm,rp,rz}.f32", numerics.subtract, 2),
    **floating("mul.{rm,rp,rz}.f32", numerics.multiply, 2),
    **floating("fma.{rm,rp,rz}.f32", numerics.fma, 3),
    **integer("fp32", "copysign.f32", numerics.copy_sign, 2),
    **mixed("fma.rn.f32.{f16,bf16}", numerics.fma, 3),
    **mixed("add.rn.f32.{f16,bf16}", numerics.add, 2),
    **floating(f"fma.rn{{,.relu}}.{HALVES}", numerics.fma, 3),
    **floating("add{,.rn}{.ftz,.sat,.ftz.sat}.f32", numerics.add, 2),
    **floating("sub{,.rn}{.ftz,.sat,.ftz.sat}.f32", numerics.subtract, 2),
    **floating("mul{,.rn}{.ftz,.sat,.ftz.sat}.f32", numerics.multiply, 2),
    **floating("fma.rn{.ftz,.sat,.ftz.sat}.f32", numerics.fma, 3),
    **floating("add{,.rn}.sat.{f16,f16x2}", numerics.add, 2),
    **floating("sub{,.rn}.sat.{f16,f16x2}", numerics.subtract, 2),
    **floating("mul{,.rn}.sat.{f16,f16x2}", numerics.multiply, 2),
    **floating("fma.rn.sat.{f16,f16x2}", numerics.fma, 3),
    **floating("min.ftz.f32", numerics.minimum, 2),
    **floating("max.ftz.f32", numerics.maximum, 2),
    **floating("neg.ftz.f32", np.negative, 1),
    **floating("abs.ftz.f32", np.abs, 1),
    **floating(f"min.{FLOATS}", numerics.minimum, 2),
    **floating(f"max.{FLOATS}", numerics.maximum, 2),
    **floating(f"min.NaN.{FLOATS}", numerics.minimum_nan, 2),
    **floating(f"max.NaN.{FLOATS}", numerics.maximum_nan, 2),
    **floating(f"neg.{FLOATS}", np.negative, 1),
    **floating(f"abs.{FLOATS}", np.abs, 1),
    **floating("div.rn{,.ftz}.f32", numerics.divide, 2),
    **floating("rcp.rn{,.ftz}.f32", numerics.reciprocal, 1),
    **floating("sqrt.rn{,.ftz}.f32", numerics.square_root, 1),
    **approximate("div.{approx,full}{,.ftz}.f32", np.divide, 2),
    **approximate("sin.approx{,.ftz}.f32", np.sin),
    **approximate("cos.approx{,.ftz}.f32", np.cos),
    **approximate("tanh.approx.f32", np.tanh),
    **approximate("ex2.approx{,.ftz}.f32", np.exp2),
    **approximate("lg2.approx{,.ftz}.f32", np.log2),
    **approximate("rcp.approx{,.ftz}.f32", np.reciprocal),
    **approximate("sqrt.approx{,.ftz}.f32", np.sqrt),
    **approximate("rsqrt.approx{,.ftz}.f32", numerics.reciprocal_root),
    # Data Movement and Conversion Instructions
    **table("move", "mov.{b,u,s}{16,32,64}", bind_move),
    **table("move", "mov.{f32,pred}", bind_move),
    **integer("move", "cvta.to.{global,shared}.u64", lambda a: a, 1),
    **conversions(
        "cvt.{u,s}{8,16,32,64}.{u,s}{8,16,32,64}",
        "cvt.sat.{u,s}8.{u,s}{16,32,64}",
        "cvt.sat.{u,s}16.{u,s}{32,64}",
        "cvt.sat.{u,s}32.{u,s}64",
        "cvt.sat.u{8,16,32,64}.s{8,16,32,64}",
        "cvt.sat.s8.u8",
        "cvt.sat.s16.u16",
        "cvt.sat.s32.u32",
        "cvt.sat.s64.u64",
        "cvt.rn.{f16,f32}.{u,s}{8,16,32,64}",
        "cvt.rn.bf16.{u,s}{16,32}",
        "cvt.{rni,rzi,rmi,rpi}.{u,s}{8,16,32,64}.{f16,f32}",
        "cvt.{rni,rzi,rmi,rpi}.{f16.f16,f32.f32}",
        "cvt.f32.{f16,bf16}",
        "cvt{,.sat}.f32.f32",
        "cvt.{rni,rzi,rmi,rpi}.ftz.{u,s}{8,16,32,64}.f32",
        "cvt.{rni,rzi,rmi,rpi}.ftz.f32.f32",
        "cvt.rn{,.relu}.{f16,bf16}.f32",
        "cvt.rn{,.relu}.{f16x2,bf16x2}.f32",
        "cvt.rn{,.relu}.f16x2.{e4m3x2,e5m2x2}",
        "cvt.rn.satfinite{,.relu}.{e4m3x2,e5m2x2}.{f32,f16x2}",
    ),
    **table("parameter", "ld.param{,.v2,.v4}.{b,u,s}{8,16,32,64}", access.bind_load_parameter),
    **table("parameter", "ld.param.f32", access.bind_load_parameter),
    **table(
        "global",
        "ld{,.relaxed.gpu}.global{,.nc}{,.ca,.cg,.cs,.lu,.L1::evict_first,.L1::evict_last,.L1::no_allocate}"
        "{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}",
        access.bind_load,
    ),
    **table("constant", "ld.const{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_load),
    **table("global", "ld.volatile.global{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_load),
    **table("global", "st.volatile.global{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_store),
    **table("shared", "ld.volatile.shared{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_load),
    **table("shared", "st.volatile.shared{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_store),
    **table("global", "st.global{,.cs,.wt}{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_store),
    **table("shared", "ld.shared{,::cta}{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_load),
    **table("shared", "st.shared{,::cta}{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_store),
    **table("local", "ld.local{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_load),
    **table("local", "st.local{,.v2,.v4}.{{b,u,s}{8,16,32,64},f32}", access.bind_store),
    **table(
        "async copy",
        "cp.async.{ca,cg}.shared{,::cta}.global{,.L2::64B,.L2::128B,.L2::256B}",
        access.bind_copy_async,
    ),
    **table("async copy", "cp.async.commit_group", access.bind_commit),
    **table("async copy", "cp.async.wait_group", access.bind_wait_group),
    **table("async copy", "cp.async.wait_all", access.bind_wait_all),
    **table("move", "createpolicy.fractional.L2::{evict_first,evict_last}.b64", bind_policy),
    # Warp-level Matrix Instructions
    **table(
        "shared",
        "ldmatrix.sync.aligned.m8n8.x{1,2,4}{,.trans}.shared{,::cta}.b16",
        access.bind_matrix_load,
    ),
    **table(
        "shared",
        "stmatrix.sync.aligned.m8n8.x{1,2,4}{,.trans}.shared{,::cta}.b16",
        access.bind_matrix_store,
    ),
    **table(
        "tensor",
        "mma.sync.aligned.m16n8k{8,16}.row.col.{f32.f16.f16.f32,f32.bf16.bf16.f32,f16.f16.f16.f16}",
        tensor_core.bind_mma,
    ),
    **table(
        "tensor",
        "mma.sync.aligned.m16n8k{16,32}.row.col{,.satfinite}.s32.{s8,u8}.{s8,u8}.s32",
        tensor_core.bind_mma,
    ),
    **table(
        "tensor",
        "mma.sync.aligned.m16n8k{4,8}.row.col.f32.tf32.tf32.f32",
        tensor_core.bind_mma,
    ),
    **table(
        "tensor",
        "mma.sync.aligned.m16n8k{16,32}.row.col.f32.{e4m3,e5m2}.{e4m3,e5m2}.f32",
        tensor_core.bind_mma,
    ),
    **table(
        "tensor",
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale"
        ".{scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0,scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3}",
        block_scale.bind_scaled_mma,
    ),
    **table(
        "tensor",
        "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale"
        ".scale_vec::1X.f32.e4m3.e4m3.f32.ue8m0",
        block_scale.bind_scaled_mma,
    ),
    # Asynchronous Warpgroup Level Matrix Instructions
    **table("tensor", f"{WGMMA}k16.f32.{{f16.f16,bf16.bf16}}", warpgroup.bind_product),
    **table("tensor", f"{WGMMA}k32.f32.{{e4m3,e5m2}}.{{e4m3,e5m2}}", warpgroup.bind_product),
    **table("tensor", f"{WGMMA}k32.s32.{{s8,u8}}.{{s8,u8}}", warpgroup.bind_product),
    **table("tensor", "wgmma.fence.sync.aligned", warpgroup.bind_fence),
    **table("tensor", "wgmma.commit_group.sync.aligned", warpgroup.bind_commit),
    **table("tensor", "wgmma.wait_group.sync.aligned", warpgroup.bind_wait),
    **table("control", "fence.proxy.async{,.shared::cta}", warpgroup.bind_proxy_fence),
    # Parallel Synchronization and Communication Instructions
    **table("control", "{bar.sync,barrier.sync.aligned}", bind_barrier),
    **table("atomic", f"{{atom,red}}{ATOMIC}.add.{{u32,s32,u64,f32}}", atomics.bind_atomic),
    **table("atomic", f"{{atom,red}}{ATOMIC}.{{min,max}}.{{u32,s32,u64,s64}}", atomics.bind_atomic),
    **table("atomic", f"{{atom,red}}{ATOMIC}.{{inc,dec}}.u32", atomics.bind_atomic),
    **table("atomic", f"{{atom,red}}{ATOMIC}.{{and,or,xor}}.{{b32,b64}}", atomics.bind_atomic),
    **table("atomic", f"atom{ATOMIC}.{{exch,cas}}.{{b32,b64}}", atomics.bind_atomic),
    **table("control", "membar.{cta,gl,sys}", bind_nothing),
    **table("control", "fence.{sc,acq_rel}.{cta,gpu,sys}", bind_nothing),
    **table("warp", "bar.warp.sync", warp.bind_warp_barrier),
    **table("warp", "shfl.sync.{up,down,bfly,idx}.b32", warp.bind_shuffle),
    **table("warp", "vote.sync.{all,any,uni}.pred", warp.bind_vote),
    **table("warp", "vote.sync.ballot.b32", warp.bind_vote),
    **table("warp", "redux.sync.{add,min,max}.{u32,s32}", warp.bind_reduce),
    **table("warp", "redux.sync.{and,or,xor}.b32", warp.bind_reduce),
    **table("warp", "activemask.b32", warp.bind_active_mask),
    # Control Flow Instructions
    **table("control", "bra{,.uni}", bind_branch),
    **table("control", "{ret,exit}", bind_exit),
    **table("control", "trap", bind_trap),
}


def find(instruction: Instruction) -> Operation:
    """The operation of an instruction.

    Raises:
        UnsupportedError: its opcode is not on the whitelist.
    """
    operation = OPCODES.get(instruction.opcode)
    if operation is None:
        advice = next(
            (text for start, text in ADVICE.items() if instruction.opcode.startswith(start)),
            "it is not on the whitelist in bench/static/ptx/opcodes.py.",
        )
        raise UnsupportedError(instruction.opcode, instruction.line, advice)
    return operation
