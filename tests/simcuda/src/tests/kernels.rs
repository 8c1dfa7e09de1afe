//! Kernels: what the interpreter makes of text that NVRTC wrote, against the same in plain Rust.

use super::*;
use std::time::Instant;

const SUMS: &str = include_str!("../../fixtures/sums.ptx");
const MIXTURE: &str = include_str!("../../fixtures/mixture.ptx");

fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// `weighted_sum` of `fixtures/sums.cu`, for one thread.
fn weighted_sum(bytes: &[u8], first: u64, seed: u64) -> u128 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = 0_u128;
    for (word, j) in words.iter().zip(first..) {
        let key = mix(j.wrapping_add(seed)) | 1;
        let key_high = mix(key ^ seed);
        let word = u128::from(u64::from_le_bytes(*word) ^ 0x9e37_79b9_7f4a_7c15);
        sum = sum.wrapping_add(word.wrapping_mul(u128::from(key_high) << 64 | u128::from(key)));
    }
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let key = mix(first.wrapping_add(words.len() as u64).wrapping_add(seed)) | 1;
        sum = sum.wrapping_add(word.wrapping_mul(key).into());
    }
    sum
}

#[test]
fn sums_over_a_grid_are_those_of_plain_rust() {
    apart(name!(sums_over_a_grid_are_those_of_plain_rust), &[], || {
        start();
        let function = function(SUMS, "weighted_sum");
        for (len, blocks, threads) in
            [(0, 1, 1), (5, 1, 32), (80_003, 3, 96), (80_000, 7, 128), (64, 1, 1024)]
        {
            let words = random_words(len, 10_001);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let len = usize::try_from(len).unwrap();
            let (data, sums) = (words_on_device(&words), words_on_device(&[0; 5]));
            let parameters = vec![data, len as u64, 1 << 40, 0x1234_5678_9abc_def0, sums];
            ok(launch(function, [blocks, 1], [threads, 1], parameters));
            let sums = words_of_device(sums, 5);
            let sum =
                sums[..4].iter().rev().fold(0_u128, |sum, limb| (sum << 32).wrapping_add((*limb).into()));
            assert_eq!(sum, weighted_sum(&bytes[..len], 1 << 40, 0x1234_5678_9abc_def0), "{len} bytes");
            assert_eq!(sums[4], len as u64);
        }
    });
}

/// The lower half.
fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap()
}

/// The results of `fixtures/mixture.cu` for one pair.
#[expect(clippy::cast_possible_truncation, reason = "as in the kernel")]
fn mixture(a: u64, b: u64) -> [u64; 40] {
    let (sa, sb) = (a.cast_signed(), b.cast_signed());
    let (c, d) = (a as u32, (b >> 32) as u32);
    let (sc, sd) = (c.cast_signed(), d.cast_signed());
    let signed = |value: i32| i64::from(value).cast_unsigned();
    let divides = b != 0 && sb != -1;
    let divides32 = d != 0 && sd != -1;
    let both = u64::from(d) << 32 | u64::from(c);
    let bytes = both.to_le_bytes();
    let selector = (a >> 40) as u32;
    // `__byte_perm` looks at three bits of each digit.
    let byte = |at: u32| bytes[(selector >> (4 * at) & 7) as usize];
    let (wide_a, wide_b) = (u128::from(a), u128::from(b));
    let difference = (wide_a << 64 | wide_b).wrapping_sub(wide_b << 64 | wide_a);
    let turned =
        (0..u64::from(d & 15)).fold(a, |turned, i| turned.rotate_left(7).wrapping_mul(3).wrapping_add(i));
    [
        a.wrapping_add(b),
        a.wrapping_sub(b),
        a.wrapping_mul(b),
        ((wide_a * wide_b) >> 64) as u64,
        ((i128::from(sa) * i128::from(sb)).cast_unsigned() >> 64) as u64,
        a.checked_div(b).unwrap_or(1),
        a.checked_rem(b).unwrap_or(2),
        if divides { (sa / sb).cast_unsigned() } else { 3 },
        if divides { (sa % sb).cast_unsigned() } else { 4 },
        c.checked_div(d).map_or(5, u64::from),
        c.checked_rem(d).map_or(6, u64::from),
        if divides32 { signed(sc / sd) } else { 7 },
        if divides32 { signed(sc % sd) } else { 8 },
        a << (b & 63),
        a >> (b & 63),
        (sa >> (b & 63)).cast_unsigned(),
        u64::from(c) << (d & 31),
        (c >> (d & 31)).into(),
        signed(sc >> (d & 31)),
        a & b | !(a ^ b),
        a.min(b),
        sa.max(sb).cast_unsigned(),
        c.min(d).into(),
        signed(sc.max(sd)),
        (a.count_ones() + b.leading_zeros() + c.count_ones() + d.leading_zeros()).into(),
        (both << (b & 31)) >> 32,
        u64::from((both >> (b & 31)) as u32),
        u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]).into(),
        u64::from(c) * u64::from(d),
        (i64::from(sc) * i64::from(sd)).cast_unsigned(),
        (u64::from(c) * u64::from(d)) >> 32,
        ((i64::from(sc) * i64::from(sd)) >> 32).cast_unsigned(),
        (a & 0xff) << 32 | b & 0xffff,
        i64::from(a as i8).wrapping_add(i64::from(b as i16)).cast_unsigned(),
        u64::from(a == b)
            + 2 * u64::from(a <= b)
            + 4 * u64::from(sa <= sb)
            + 8 * u64::from(c > d)
            + 16 * u64::from(sc >= sd)
            + 32 * u64::from(c != d),
        ((wide_a * wide_b) >> 64) as u64 ^ ((wide_a + (wide_b << 3)) >> 64) as u64,
        (difference >> 64) as u64,
        difference as u64,
        turned,
        u64::from(c.swap_bytes()) ^ u64::from(d.reverse_bits()) << 32,
    ]
}

#[test]
fn every_kind_of_instruction_gives_what_plain_rust_gives() {
    apart(name!(every_kind_of_instruction_gives_what_plain_rust_gives), &[], || {
        start();
        let function = function(MIXTURE, "mixture");
        let count = 4000;
        let input = random_words(1, 2 * count);
        let mut results = vec![0; 40 * count + 2];
        let (input_at, output) = (words_on_device(&input), words_on_device(&results));
        // 16-byte loads: the address is a multiple of 256.
        ok(launch(function, [5, 7], [16, 8], vec![input_at, count as u64, output]));
        let (pairs, _) = input.as_chunks::<2>();
        results = words_of_device(output, results.len());
        for (at, ([a, b], seen)) in pairs.iter().zip(results.as_chunks::<40>().0).enumerate() {
            let expected = mixture(*a, *b);
            for (which, (seen, expected)) in seen.iter().zip(expected).enumerate() {
                assert_eq!(*seen, expected, "result {which} of pair {at}: {a:#x} and {b:#x}");
            }
        }
        let sum = pairs.iter().fold(0_u32, |sum, [a, _]| sum.wrapping_add(low(*a)));
        assert_eq!(results[40 * count], u64::from(sum));
        assert_eq!(results[40 * count + 1], *pairs.iter().map(|[a, _]| a).max().unwrap());
    });
}

/// An entry `k` with one parameter, `out`, whose body is `body`; it can use `%rd0` to `%rd19` and so on.
fn entry(body: &str) -> String {
    format!(
        ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(.param .u64 out)\n{{\n\
         .reg .pred %p<5>; .reg .b16 %rs<9>; .reg .b32 %r<20>; .reg .b64 %rd<20>;\n\
         ld.param.u64 %rd0, [out]; cvta.to.global.u64 %rd0, %rd0;\n{body}\nret;\n}}\n"
    )
}

#[test]
fn instructions_that_compilers_seldom_emit() {
    apart(name!(instructions_that_compilers_seldom_emit), &[], || {
        start();
        let function = function(
            &entry(
                "mov.u32 %r1, 0x89abcdef; mov.u64 %rd1, 0x89abcdef01234567; mov.u32 %r9, 0xffffffff;
                 bfe.u32 %r2, %r1, 4, 8;        cvt.u64.u32 %rd2, %r2; st.global.u64 [%rd0], %rd2;
                 bfe.s32 %r2, %r1, 28, 8;       cvt.s64.s32 %rd2, %r2; st.global.u64 [%rd0+8], %rd2;
                 bfe.s64 %rd2, %rd1, 60, 4;     st.global.u64 [%rd0+16], %rd2;
                 prmt.b32 %r2, %r1, %r9, 0xb810; st.global.u32 [%rd0+24], %r2; st.global.u32 [%rd0+28], 7;
                 shf.l.clamp.b32 %r2, %r1, %r9, 40; shf.r.clamp.b32 %r3, %r1, %r9, 36;
                 mov.b64 %rd2, {%r2, %r3};      st.global.b64 [%rd0+32], %rd2;
                 mov.b64 {%r4, %r5}, %rd1;      st.global.v2.u32 [%rd0+40], {%r5, %r4};
                 lop3.b32 %r2, %r1, %r9, 0xff00ff00, 0x28; cvt.u64.u32 %rd2, %r2; st.global.u64 [%rd0+48], %rd2;
                 mov.u16 %rs1, 0x8001; shr.s16 %rs2, %rs1, 4; add.s16 %rs3, %rs1, %rs1; mul.wide.s16 %r2, %rs1, %rs1;
                 st.global.u16 [%rd0+56], %rs2; st.global.u16 [%rd0+58], %rs3; st.global.u32 [%rd0+60], %r2;
                 mad.lo.cc.u64 %rd3, %rd1, %rd1, %rd1; madc.hi.u64 %rd4, %rd1, %rd1, 0;
                 st.global.v2.u64 [%rd0+64], {%rd3, %rd4};
                 setp.lt.and.s16 %p1|%p2, %rs1, 0, !%p3; @%p1 bra $one; st.global.u64 [%rd0+80], 1; bra.uni $end;
                 $one: @!%p1 st.global.u64 [%rd0+80], 2; @%p2 st.global.u64 [%rd0+80], 3;
                 @%p1 red.global.add.u64 [%rd0+80], 5; $end:
                 atom.global.cas.b64 %rd5, [%rd0+88], 0xa5a5a5a5a5a5a5a5, 9; add.u64 %rd5, %rd5, 1;
                 atom.global.exch.b64 %rd6, [%rd0+88], %rd5; st.global.u64 [%rd0+96], %rd6;
                 ld.global.s8 %r2, [%rd0+88]; cvt.s64.s32 %rd7, %r2; st.global.u64 [%rd0+104], %rd7;
                 shl.b32 %r2, %r1, 32; shr.u64 %rd8, %rd1, 64; shr.s32 %r3, %r1, 99;
                 st.global.v4.u32 [%rd0+112], {%r2, %r3, %r9, 1}; st.global.u64 [%rd0+112], %rd8;
                 ld.global.v2.u64 {%rd0, %rd9}, [%rd0+64]; setp.eq.u64 %p4, %rd0, %rd3; @!%p4 trap;",
            )
            .replace("cvta.to.global.u64 %rd0, %rd0;", "cvta.to.global.u64 %rd0, %rd0; setp.ne.u32 %p3, 1, 1;"),
            "k",
        );
        let out = allocate(128);
        ok(launch(function, [1, 1], [1, 1], vec![out]));
        let a = 0x89ab_cdef_0123_4567_u64;
        let square = u128::from(a) * u128::from(a) + u128::from(a);
        let poison = 0xa5a5_a5a5_a5a5_a5a5;
        assert_eq!(
            words_of_device(out, 16),
            [
                0xde,
                (-8_i64).cast_unsigned(),
                (-8_i64).cast_unsigned(),
                7 << 32 | 0xffff_cdef_u64 & 0xff00_ffff | 0x00ff_0000,
                0xffff_ffff << 32 | 0x89ab_cdef,
                0x0123_4567 << 32 | 0x89ab_cdef,
                // 0x28: exactly `c` and one of the others.
                u64::from(0x89ab_cdef_u32 ^ 0xffff_ffff) & 0xff00_ff00,
                0x3fff_0001 << 32 | 2 << 16 | 0xf800,
                a.wrapping_mul(a).wrapping_add(a),
                u64::try_from(square >> 64).unwrap(),
                poison + 5,
                poison + 1,
                9,
                (i64::from(0xa6_u8.cast_signed())).cast_unsigned(),
                0,
                1 << 32 | 0xffff_ffff,
            ]
        );
    });
}

#[test]
fn parameters_are_structs_and_numbers_of_all_sizes() {
    apart(name!(parameters_are_structs_and_numbers_of_all_sizes), &[], || {
        start();
        let text = ".version 8.7\n.target sm_90\n.address_size 64\n\
                    .visible .entry k(.param .u64 .ptr .global .align 8 out, .param .align 8 .b8 pair[16], .param .s8 small)\n\
                    {.reg .b64 %rd<5>; .reg .b32 %r<2>; ld.param.u64 %rd0, [out];\n\
                    ld.param.v2.u64 {%rd1, %rd2}, [pair]; ld.param.u16 %r1, [pair+6];\n\
                    st.global.v2.u64 [%rd0], {%rd2, %rd1}; ld.param.s8 %rd3, [small]; st.global.s64 [%rd0+16], %rd3;\n\
                    st.u32 [%rd0+24], %r1; st.u32 [%rd0+28], 0; ret;}";
        let (function, out) = (function(text, "k"), allocate(32));
        let (mut address, mut pair, mut small) = (out, [0x1122_3344_5566_7788_u64, 9], -3_i8);
        let mut places: [*mut c_void; 3] =
            [(&raw mut address).cast(), (&raw mut pair).cast(), (&raw mut small).cast()];
        let (stream, places, none) = (ptr::null_mut(), places.as_mut_ptr(), ptr::null_mut());
        // SAFETY: a valid function, and a place for each parameter.
        ok(unsafe { cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, places, none) });
        ok(wait(stream));
        assert_eq!(words_of_device(out, 4), [9, pair[0], (-3_i64).cast_unsigned(), 0x1122]);
    });
}

#[test]
fn every_access_is_checked() {
    let cases = [
        ("ld.global.u64 %rd1, [%rd0+121];", CUresult::CUDA_ERROR_MISALIGNED_ADDRESS),
        ("ld.global.u64 %rd1, [%rd0+128];", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
        ("ld.global.v2.u64 {%rd1, %rd2}, [%rd0+8];", CUresult::CUDA_ERROR_MISALIGNED_ADDRESS),
        ("st.global.u8 [%rd0+-1], 1;", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
        ("st.global.u32 [0], 1;", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
        ("atom.global.add.u64 %rd1, [%rd0+128], 1;", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
        ("red.global.add.u32 [%rd0+2], 1;", CUresult::CUDA_ERROR_MISALIGNED_ADDRESS),
        ("$again: bra $again;", CUresult::CUDA_ERROR_LAUNCH_TIMEOUT),
        ("trap;", CUresult::CUDA_ERROR_LAUNCH_FAILED),
        ("ld.global.u64 %rd1, [%rd0+120];", CUresult::CUDA_SUCCESS),
    ];
    let variables = [("SIMCUDA_GPUS", "10"), ("SIMCUDA_KERNEL_INSTRUCTIONS", "1000000")];
    apart(name!(every_access_is_checked), &variables, || {
        start();
        for (gpu, (body, code)) in (0..).zip(cases) {
            use_gpu(gpu);
            let (function, out) = (function(&entry(body), "k"), allocate(128));
            assert_eq!(launch(function, [2, 1], [2, 1], vec![out]), code, "{body}");
            // SAFETY: no pointers.
            assert_eq!(unsafe { cuStreamQuery(ptr::null_mut()) }, code, "{body}: it sticks");
        }
    });
}

#[test]
fn memory_of_another_gpu_or_freed_is_out_of_bounds() {
    apart(name!(memory_of_another_gpu_or_freed_is_out_of_bounds), &[], || {
        start();
        let text = entry("st.global.u64 [%rd0], 1;");
        let (others, freed) = (allocate(8), allocate(8));
        ok(launch(function(&text, "k"), [1, 1], [1, 1], vec![freed]));
        // SAFETY: nothing uses it now.
        ok(unsafe { cuMemFree_v2(freed) });
        let code = launch(function(&text, "k"), [1, 1], [1, 1], vec![freed]);
        assert_eq!(code, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        use_gpu(1);
        let code = launch(function(&text, "k"), [1, 1], [1, 1], vec![others]);
        assert_eq!(code, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn launches_that_cannot_be_are_refused() {
    apart(name!(launches_that_cannot_be_are_refused), &[("SIMCUDA_FAULT", "kernel-error:2@1")], || {
        start();
        let text = entry("st.global.u64 [%rd0], 1;");
        let function = function(&text, "k");
        let out = allocate(8);
        for (blocks, threads) in [([0, 1], [1, 1]), ([1, 1], [1025, 1]), ([1, 70_000], [1, 1])] {
            assert_eq!(launch(function, blocks, threads, vec![out]), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        use_gpu(1);
        let wrong = launch(function, [1, 1], [1, 1], vec![out]);
        assert_eq!(wrong, CUresult::CUDA_ERROR_INVALID_HANDLE, "a function of another context");
        let (function, out) = (super::function(&text, "k"), allocate(8));
        ok(launch(function, [1, 1], [1, 1], vec![out]));
        assert_eq!(launch(function, [1, 1], [1, 1], vec![out]), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn a_text_that_does_not_load_says_why_in_the_log() {
    use cudarc::driver::sys::CUjit_option::*;
    apart(name!(a_text_that_does_not_load_says_why_in_the_log), &[("SIMCUDA_PTX_VERSION", "7.8")], || {
        start();
        let load = |text: &str| {
            let text = std::ffi::CString::new(text).unwrap();
            let (mut module, mut log) = (ptr::null_mut(), [1_u8; 256]);
            let mut options = [CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_ERROR_LOG_BUFFER];
            let mut values = [ptr::without_provenance_mut(log.len()), log.as_mut_ptr().cast::<c_void>()];
            // SAFETY: valid places, and the room that the options say.
            let code = unsafe {
                let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
                cuModuleLoadDataEx(&raw mut module, text.as_ptr().cast(), 2, options, values)
            };
            let log = std::ffi::CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap().to_owned();
            assert_eq!(values[0].addr(), log.len() + 1);
            (code, log)
        };
        let (code, log) = load(SUMS);
        assert_eq!(code, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        assert!(log.contains("Unsupported .version 8.7; current version is '7.8'"), "{log}");
        let (code, log) = load(&entry("bar.sync 0;"));
        assert_eq!(code, CUresult::CUDA_ERROR_INVALID_PTX);
        assert!(log.contains("bar.sync"), "{log}");
        let (code, log) = load(&entry(""));
        assert_eq!((code, log.as_str()), (CUresult::CUDA_SUCCESS, ""));
    });
}

/// How fast the interpreter is; run by hand with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let name = name!(speed);
    if env::var(CHILD).is_err() {
        // SAFETY: no other thread looks at the environment.
        unsafe { env::set_var(CHILD, name) };
    }
    start();
    let function = function(SUMS, "weighted_sum");
    let len = 64 << 20;
    let (data, sums) = (allocate(len), words_on_device(&[0; 5]));
    let begun = Instant::now();
    ok(launch(function, [64, 1], [256, 1], vec![data, len as u64, 0, 1, sums]));
    let seconds = begun.elapsed().as_secs_f64();
    let instructions = (len / 8 * 32) as f64;
    println!("{:.0} million instructions a second, {seconds:.2} s", instructions / seconds / 1e6);
}
