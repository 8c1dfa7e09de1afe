// The fingerprints of `src/fingerprint/`, computed on a GPU from what lies in its memory.
//
// fingerprint.ptx is what `./build` makes of this file. Threads share nothing: no shared memory, no barrier, no shuffle. Each
// sums up its words, and adds its sum to the result with atomics when it goes on to another one.

typedef unsigned int u32;
typedef unsigned long long u64;

// Rows of one tensor; `Item` in sums.rs has the same fields in the same order.
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

// Words of 64 bits of a block: one number multiplies all of a block's products.
#define BLOCK 512

__device__ u64 mix(u64 value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

// Of the tensor's word of 32 bits at `place` in its block.
__device__ u32 key(u32 place) {
    u32 value = place + 1;  // below 2^16: the mixer's first step would change nothing
    value *= 0x85ebca6b;
    value = (value ^ (value >> 13)) * 0xc2b2ae35;
    return ((value ^ (value >> 16)) & 0xffffff) | 1;
}

// Adds two products of 56 bits to `part`: of the halves of `word`, which is at `place` in its block. `held` has the bits of
// the bytes that lie here.
__device__ void add_products(u64 &part, u64 word, u64 held, u32 place) {
    u32 lower = ((u32)word ^ 0x9e3779b9u) & (u32)held;
    u32 upper = ((u32)(word >> 32) ^ 0x9e3779b9u) & (u32)(held >> 32);
    // One instruction each; left to itself, the compiler multiplies 64 by 64 bits.
    asm("mad.wide.u32 %0, %1, %2, %0;" : "+l"(part) : "r"(lower), "r"(key(2 * place)));
    asm("mad.wide.u32 %0, %1, %2, %0;" : "+l"(part) : "r"(upper), "r"(key(2 * place + 1)));
}

struct Sum {
    u64 low, high, bytes;

    // `part` is a thread's part of the sum of block `block`.
    __device__ void add(u64 part, u64 seed, u64 block) {
        u64 multiplier = mix(seed + block) | 1;
        u64 product = part * multiplier;
        low += product;
        high += __umul64hi(part, multiplier) + (low < product ? 1 : 0);
    }

    __device__ void give(u64 *limbs) {
        if ((low | high | bytes) == 0) return;
        atomicAdd(&limbs[0], low & 0xffffffffull);
        atomicAdd(&limbs[1], low >> 32);
        atomicAdd(&limbs[2], high & 0xffffffffull);
        atomicAdd(&limbs[3], high >> 32);
        atomicAdd(&limbs[4], bytes);
        low = high = bytes = 0;
    }
};

// A word of the tensor whose bytes from `from` to before `until` lie in the memory. Only aligned words that hold one of these
// are read.
__device__ u64 load_part(const u64 *word, u32 skip, u32 from, u32 until) {
    u64 lower = skip + from < 8 ? word[0] >> (8 * skip) : 0;
    u64 upper = skip + until > 8 ? word[1] << (64 - 8 * skip) : 0;
    return lower | upper;
}

extern "C" __global__ void fingerprint(const u64 *memory, const Item *items, u64 count, u64 *sums) {
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    // Neighbouring items mostly add to the same sum: a block takes a run of them.
    u64 begin = count * blockIdx.x / gridDim.x, end = count * (blockIdx.x + 1) / gridDim.x;
    Sum sum = {0, 0, 0};
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
            long long base = item.at + run * item.at_stride - start;
            // The tensor's word `index` begins `skip` bytes after the beginning of words[index].
            const u64 *words = memory + (base >> 3);
            u32 skip = base & 7;

            // Words that are all here. An aligned one is read twice rather than after a branch, so that loads can overlap.
            u64 first = (start + 7) / 8, last = stop / 8;
            u32 next = skip == 0 ? 0 : 1;
            for (u64 index = first + lane; index < last;) {
                u64 block = index / BLOCK;
                u64 until = (block + 1) * BLOCK < last ? (block + 1) * BLOCK : last;
                // Of 16 words at most, so it stays below 2^61.
                u64 part = 0;
#pragma unroll 4
                for (; index < until; index += 32) {
                    // By less than 64 bits at a time.
                    u64 upper = words[index + next] << 1 << (63 - 8 * skip);
                    add_products(part, words[index] >> (8 * skip) | upper, ~0ull, (u32)index % BLOCK);
                }
                sum.add(part, item.seed, block);
            }

            // Lane 0 takes a word that begins before the row, lane 1 one that ends after it and is another.
            if (lane < 2) {
                u64 index = lane == 0 ? start / 8 : last;
                u32 from = lane == 0 ? start & 7 : 0;
                u32 until = stop - index * 8 < 8 ? (u32)(stop - index * 8) : 8;
                if (lane == 0 ? from > 0 : first <= last && until > 0) {
                    u64 held = (~0ull >> (64 - 8 * (until - from))) << (8 * from), part = 0;
                    add_products(part, load_part(words + index, skip, from, until), held, (u32)index % BLOCK);
                    sum.add(part, item.seed, index / BLOCK);
                }
                sum.bytes += lane == 0 ? item.run_bytes : 0;
            }
        }
    }
    sum.give(&sums[(u64)to * LIMBS]);
}
