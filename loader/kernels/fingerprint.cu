// The fingerprints of `fingerprint.rs`, computed on a GPU from what lies in its memory.
//
// fingerprint.ptx is what `./build` makes of this file. Threads share nothing: no shared memory, no barrier, no shuffle. Each
// sums up its words, and adds its sum to the result with atomics when it goes on to another one.

typedef unsigned int u32;
typedef unsigned long long u64;

// Rows of one tensor; `Item` in kernel.rs has the same fields in the same order.
struct Item {
    u64 at;                // first byte in the memory, which begins at a multiple of 8 and ends at one
    u64 at_stride;         // from one row's beginning to the next in the memory
    u64 in_tensor;         // first byte in the whole tensor
    u64 in_tensor_stride;  // from one row's beginning to the next in the whole tensor
    u64 run_bytes;         // of each row
    u64 seed;              // the tensor's
    u32 runs;              // how many rows
    u32 sum;               // which sum it adds to
};

// Numbers of one sum: four limbs of 32 bits, and a count of bytes.
#define LIMBS 5

__device__ u64 mix(u64 value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

// The factor of half-word `place` of a block, of 24 bits.
__device__ u32 factor(u32 place) {
    u32 value = place + 1;
    value = (value ^ (value >> 16)) * 0x85ebca6bu;
    value = (value ^ (value >> 13)) * 0xc2b2ae35u;
    return ((value ^ (value >> 16)) & 0xffffffu) | 1u;
}

// Words that a thread sums before it multiplies: each adds less than 2^57.
#define MOST_WORDS 64

struct Sum {
    u64 low, high, bytes;
    // The sum of `words` words of one block of one tensor, which is exact as long as these are at most MOST_WORDS.
    u64 part, block, seed;
    u32 words;

    // word is the tensor's word `index`; held has the bits of the bytes that lie here.
    __device__ void add(u64 word, u64 held, u64 of_seed, u64 index) {
        if (words == MOST_WORDS || block != index / 512 || seed != of_seed) flush();
        block = index / 512;
        seed = of_seed;
        words++;
        u64 value = (word ^ 0x9e3779b99e3779b9ull) & held;
        u32 place = (u32)(index & 511) * 2;
        part += (u64)(u32)value * factor(place) + (u64)(u32)(value >> 32) * factor(place + 1);
    }

    // Multiplies what was summed of a block by the block's factor.
    __device__ void flush() {
        if (words == 0) return;
        u64 key = mix(seed + block) | 1;
        u64 product = part * key;
        low += product;
        high += __umul64hi(part, key) + (low < product ? 1 : 0);
        part = 0;
        words = 0;
    }

    __device__ void give(u64 *limbs) {
        flush();
        if (bytes == 0) return;
        atomicAdd(&limbs[0], low & 0xffffffffull);
        atomicAdd(&limbs[1], low >> 32);
        atomicAdd(&limbs[2], high & 0xffffffffull);
        atomicAdd(&limbs[3], high >> 32);
        atomicAdd(&limbs[4], bytes);
        low = high = bytes = 0;
    }
};

// The eight bytes of `memory` from `at` on, of which those from `first` to before `last` lie in it and matter. Only aligned
// words that hold one of these are read.
__device__ u64 load(const u64 *memory, u64 at, u32 first, u32 last) {
    const u64 *aligned = memory + ((long long)at >> 3);
    u32 skip = (u32)(at & 7);
    if (skip == 0) return *aligned;
    u64 word = 0;
    if (skip + first < 8) word = aligned[0] >> (8 * skip);
    if (skip + last > 8) word |= aligned[1] << (64 - 8 * skip);
    return word;
}

extern "C" __global__ void fingerprint(const u64 *memory, const Item *items, u64 count, u64 *sums) {
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    // Neighbouring items mostly add to the same sum: a block takes a run of them.
    u64 begin = count * blockIdx.x / gridDim.x, end = count * (blockIdx.x + 1) / gridDim.x;
    Sum sum = {0, 0, 0, 0, 0, 0, 0};
    u32 to = 0;
    for (u64 number = begin; number < end; number++) {
        Item item = items[number];
        if (item.sum != to) {
            sum.give(&sums[(u64)to * LIMBS]);
            to = item.sum;
        }
        for (u32 run = warp; run < item.runs; run += warps) {
            u64 start = item.in_tensor + run * item.in_tensor_stride, stop = start + item.run_bytes;
            // Where byte 0 of the tensor would lie, were all of it laid out like this row; it may lie before the memory.
            u64 base = item.at + run * item.at_stride - start;
            u64 last = (stop + 7) / 8;
            for (u64 index = start / 8 + lane; index < last; index += 32) {
                u64 place = index * 8;
                u32 from = place < start ? (u32)(start - place) : 0;
                u32 until = stop - place < 8 ? (u32)(stop - place) : 8;
                u64 held = (~0ull >> (64 - 8 * (until - from))) << (8 * from);
                sum.add(load(memory, base + place, from, until), held, item.seed, index);
                sum.bytes += until - from;
            }
        }
    }
    sum.give(&sums[(u64)to * LIMBS]);
}
