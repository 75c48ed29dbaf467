//! The types of HDF5's elements.

use hdf5_reader::{ByteOrder, Datatype};

use crate::dtype::DType;

/// What the elements of a dataset are.
pub struct Element {
    pub dtype: DType,
    pub is_big_endian: bool,
}

impl Element {
    fn of(dtype: DType, order: ByteOrder) -> Element {
        Element { dtype, is_big_endian: matches!(order, ByteOrder::BigEndian) }
    }

    /// The elements of this type, of which the message in the file is given too; why they are no numbers that are known.
    /// Of elements that HDF5 does not know, `named` is the type that an attribute gives them.
    pub fn parse(datatype: &Datatype, message: &[u8], named: Option<&str>) -> Result<Element, String> {
        match datatype {
            Datatype::FixedPoint { size, signed, byte_order } => {
                let name = format!("{}{}", if *signed { "int" } else { "uint" }, usize::from(*size) * 8);
                let unknown = || format!("its elements are integers of {size} bytes");
                // The bit offset and the precision.
                let bits = message.get(8..12).ok_or("the description of its elements is too short")?;
                let [offset, precision] =
                    [&bits[..2], &bits[2..]].map(|two| u16::from_le_bytes([two[0], two[1]]));
                if (offset, precision) != (0, u16::from(*size) * 8) {
                    return Err(format!("its elements are integers of {precision} bits within {size} bytes"));
                }
                Ok(Element::of(DType::from_name(&name).ok_or_else(unknown)?, *byte_order))
            }
            Datatype::FloatingPoint { byte_order, .. } => Ok(Element::of(float(message)?, *byte_order)),
            Datatype::Enum { base, members } => {
                let is_bool = matches!(**base, Datatype::FixedPoint { size: 1, .. })
                    && members.len() == 2
                    && members.iter().all(|member| {
                        matches!((&*member.name, &member.value[..]), ("FALSE", [0]) | ("TRUE", [1]))
                    });
                match is_bool {
                    true => Ok(Element { dtype: DType::Bool, is_big_endian: false }),
                    false => Err("its elements are of an enumeration".into()),
                }
            }
            Datatype::Compound { size, fields } => complex(*size, fields),
            Datatype::Opaque { size, .. } => {
                let dtype = named.and_then(DType::from_name);
                let dtype = dtype.filter(|dtype| dtype.bits().div_ceil(8) == *size as usize);
                let unknown = || format!("its elements are {size} bytes of no type");
                Ok(Element { dtype: dtype.ok_or_else(unknown)?, is_big_endian: false })
            }
            Datatype::String { .. } | Datatype::VarLen { .. } => {
                Err("its elements are texts or lists".into())
            }
            Datatype::Array { .. } => Err("its elements are arrays".into()),
            Datatype::Reference { .. } => Err("its elements are references".into()),
            Datatype::Bitfield { .. } => Err("its elements are fields of bits".into()),
        }
    }
}

/// Numbers of floating point, by the bits of their parts: the message has them from byte 12 on, as bit offset and precision
/// (16 bits each), the places and sizes of exponent and mantissa (8 bits each), and the bias (32 bits).
fn float(message: &[u8]) -> Result<DType, String> {
    let properties = message.get(8..20).ok_or("the description of its elements is too short")?;
    let size = message[4];
    let exponent = properties[5];
    let mantissa = properties[7];
    let bias = u32::from_le_bytes([properties[8], properties[9], properties[10], properties[11]]);
    match (size, exponent, mantissa, bias) {
        (1, 5, 2, 15) => Ok(DType::F8E5M2),
        (2, 5, 10, 15) => Ok(DType::F16),
        (2, 8, 7, 127) => Ok(DType::BF16),
        (4, 8, 23, 127) => Ok(DType::F32),
        (8, 11, 52, 1023) => Ok(DType::F64),
        _ => Err(format!(
            "its elements are floating point of {size} bytes with {exponent} bits of exponent and {mantissa} of mantissa"
        )),
    }
}

/// Complex numbers, as h5py writes them: two fields, `r` and `i`.
fn complex(size: u32, fields: &[hdf5_reader::messages::datatype::CompoundField]) -> Result<Element, String> {
    let part = |field: &hdf5_reader::messages::datatype::CompoundField| match field.datatype {
        Datatype::FloatingPoint { size, byte_order } => {
            Some((&*field.name == "r", size, byte_order, field.byte_offset))
        }
        _ => None,
    };
    let parts: Vec<_> = fields.iter().filter_map(part).collect();
    match (size, &parts[..]) {
        (8, [(true, 4, order, 0), (false, 4, other, 4)]) if order == other && fields[1].name == "i" => {
            Ok(Element::of(DType::C64, *order))
        }
        (16, [(true, 8, order, 0), (false, 8, other, 8)]) if order == other && fields[1].name == "i" => {
            Ok(Element::of(DType::C128, *order))
        }
        _ => Err("its elements are records".into()),
    }
}
