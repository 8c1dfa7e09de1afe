//! Casts: tensors that are to be loaded in another dtype than they are stored in.

use crate::{checkpoint::Dtype, graph::Module};
use serde::{Deserialize, Serialize};

/// A dtype that weights can be cast to as they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CastDtype {
    /// IEEE half precision: 1 bit of sign, 5 of exponent, 10 of fraction.
    F16,
    /// The upper half of `F32`.
    BF16,
    /// IEEE single precision.
    F32,
}

impl From<CastDtype> for Dtype {
    fn from(dtype: CastDtype) -> Self {
        match dtype {
            CastDtype::F16 => Self::F16,
            CastDtype::BF16 => Self::BF16,
            CastDtype::F32 => Self::F32,
        }
    }
}

impl CastDtype {
    /// Whether what is stored as `dtype` can be cast to it, and is not there yet.
    pub fn is_cast_of(self, dtype: Dtype) -> bool {
        is_float(dtype) && Dtype::from(self) != dtype
    }

    /// Whether tensor number `parameter` of `module` is one that a person means who asks for all floats in this dtype: what
    /// belongs to a packed weight (its scales, its zeros) is of the dtype that its kernels want, but for the bias.
    pub(crate) fn is_meant_for(self, module: &Module, parameter: usize, quantised: bool) -> bool {
        let plain = module.parameters.iter().all(|parameter| is_float(parameter.dtype));
        let tensor = &module.parameters[parameter];
        let last = tensor.collapsed.rsplit('.').next().unwrap_or_default();
        let is_bias = last == "bias" || last.ends_with("_bias");
        self.is_cast_of(tensor.dtype) && (plain || is_bias) && !(quantised && last.contains("scale"))
    }
}

/// Floats that are values by themselves: narrower ones mean nothing without their scales.
fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Parameter;

    fn meant(cast: CastDtype, parameters: &[(&str, Dtype)], quantised: bool) -> Vec<bool> {
        let parameters: Vec<Parameter> = parameters
            .iter()
            .map(|&(name, dtype)| Parameter {
                name: name.to_owned(),
                collapsed: format!("l.{name}"),
                dtype,
                shape: vec![4],
            })
            .collect();
        let module = Module { name: "l".to_owned(), blocks: vec![vec![]], parameters };
        (0..module.parameters.len())
            .map(|parameter| cast.is_meant_for(&module, parameter, quantised))
            .collect()
    }

    #[test]
    fn floats_are_meant_and_what_belongs_to_packed_weights_is_not() {
        use Dtype::{BF16, F8_E4M3, F16, F32, I32, I64};
        let plain = [("weight", BF16), ("bias", F32)];
        assert_eq!(meant(CastDtype::F32, &plain, false), [true, false]);
        assert_eq!(meant(CastDtype::F16, &plain, false), [true, true]);
        let gptq = [("bias", F16), ("qweight", I32), ("scales", F16)];
        assert_eq!(meant(CastDtype::BF16, &gptq, true), [true, false, false]);
        let fp8 = [("weight", F8_E4M3), ("weight_scale_inv", F32)];
        assert_eq!(meant(CastDtype::BF16, &fp8, true), [false, false]);
        assert_eq!(meant(CastDtype::BF16, &[("k_scale", F32)], true), [false]);
        assert_eq!(meant(CastDtype::BF16, &[("layer_scale", F32)], false), [true]);
        assert_eq!(meant(CastDtype::BF16, &[("position_ids", I64)], false), [false]);
    }
}
