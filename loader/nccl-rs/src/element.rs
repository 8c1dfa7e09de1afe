//! What buffers hold, and how ranks combine it.

use crate::sys::{data_type, reduction};
use std::ffi::c_int;

/// The type of a buffer's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// Signed bytes.
    Int8,
    /// Bytes.
    Uint8,
    /// Signed 32-bit integers.
    Int32,
    /// 32-bit integers.
    Uint32,
    /// Signed 64-bit integers.
    Int64,
    /// 64-bit integers; sums wrap.
    Uint64,
    /// IEEE half precision.
    Float16,
    /// IEEE single precision.
    Float32,
    /// IEEE double precision.
    Float64,
    /// The upper half of single precision.
    Bfloat16,
    /// 8-bit floats, four bits of exponent. Since NCCL 2.24; older ones refuse it.
    Float8E4m3,
    /// 8-bit floats, five bits of exponent. Since NCCL 2.24; older ones refuse it.
    Float8E5m2,
}

impl DataType {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Int8 | Self::Uint8 | Self::Float8E4m3 | Self::Float8E5m2 => 1,
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Int32 | Self::Uint32 | Self::Float32 => 4,
            Self::Int64 | Self::Uint64 | Self::Float64 => 8,
        }
    }

    pub(crate) const fn code(self) -> c_int {
        match self {
            Self::Int8 => data_type::INT8,
            Self::Uint8 => data_type::UINT8,
            Self::Int32 => data_type::INT32,
            Self::Uint32 => data_type::UINT32,
            Self::Int64 => data_type::INT64,
            Self::Uint64 => data_type::UINT64,
            Self::Float16 => data_type::FLOAT16,
            Self::Float32 => data_type::FLOAT32,
            Self::Float64 => data_type::FLOAT64,
            Self::Bfloat16 => data_type::BFLOAT16,
            Self::Float8E4m3 => data_type::FLOAT8_E4M3,
            Self::Float8E5m2 => data_type::FLOAT8_E5M2,
        }
    }
}

/// How the elements of all ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Their sum; of integers mod 2^bits.
    Sum,
    /// Their product.
    Prod,
    /// The largest.
    Max,
    /// The smallest.
    Min,
    /// Their mean.
    Avg,
}

impl Reduction {
    pub(crate) const fn code(self) -> c_int {
        match self {
            Self::Sum => reduction::SUM,
            Self::Prod => reduction::PROD,
            Self::Max => reduction::MAX,
            Self::Min => reduction::MIN,
            Self::Avg => reduction::AVG,
        }
    }
}
