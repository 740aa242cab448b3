//! As much of protobuf as answers need: a walk over fields without copies, and the few bytes of a stream message.
//!
//! It knows the field numbers of `forebay.v1` and `google.rpc` that the checks look at; other fields are skipped.

/// Bytes that are no protobuf message.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Malformed;

/// A field's value as it is on the wire.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Value<'a> {
    /// An integer, a truth value or an enum.
    Varint(u64),
    /// A string, bytes, a message or a packed list.
    Bytes(&'a [u8]),
    /// Four or eight bytes; no message here uses them.
    Fixed,
}

/// The fields of a message, in order.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Walks `message`, which is not copied.
    #[must_use]
    pub const fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = tail;
        Ok(head)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let key = varint(&mut self.rest)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut self.rest)?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = varint(&mut self.rest)?;
                Value::Bytes(self.take(usize::try_from(length).map_err(|_| Malformed)?)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Reads a varint off the front of `rest`.
///
/// # Errors
/// It does not end within ten bytes, or within `rest`.
pub fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(Malformed)?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// Appends a varint.
pub fn put_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buffer.push((value & 0x7f) as u8);
}

/// The length of a value as a varint.
#[must_use]
pub const fn varint_length(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// The highest rank that the contract allows.
pub const MAX_RANK: usize = 8;

/// A tensor, borrowed from its message.
#[derive(Debug, Default, PartialEq, Clone, Copy)]
pub struct Tensor<'a> {
    /// The output's name.
    pub name: &'a [u8],
    /// The contract's number of the element type.
    pub data_type: u64,
    /// The dimensions; those from `rank` on are 0.
    pub shape: [i64; MAX_RANK],
    /// How many dimensions there are.
    pub rank: usize,
    /// The elements.
    pub data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Reads `forebay.v1.Tensor`.
    ///
    /// # Errors
    /// It is no protobuf message, or has too many dimensions.
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut tensor = Self::default();
        for field in Fields::new(message) {
            match field? {
                (1, Value::Bytes(name)) => tensor.name = name,
                (2, Value::Varint(number)) => tensor.data_type = number,
                (3, Value::Varint(length)) => tensor.push_dimension(length)?,
                (3, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        let length = varint(&mut packed)?;
                        tensor.push_dimension(length)?;
                    }
                }
                (4, Value::Bytes(data)) => tensor.data = data,
                _ => {}
            }
        }
        Ok(tensor)
    }

    fn push_dimension(&mut self, length: u64) -> Result<(), Malformed> {
        *self.shape.get_mut(self.rank).ok_or(Malformed)? = length.cast_signed();
        self.rank += 1;
        Ok(())
    }
}

/// The outputs of a `PredictResponse`, one by one.
pub fn outputs(response: &[u8]) -> impl Iterator<Item = Result<Tensor<'_>, Malformed>> {
    Fields::new(response).filter_map(|field| match field {
        Ok((3, Value::Bytes(tensor))) => Some(Tensor::parse(tensor)),
        Ok(_) => None,
        Err(malformed) => Some(Err(malformed)),
    })
}

/// What came of one item of a stream.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Outcome<'a> {
    /// The bytes of a `PredictResponse`.
    Response(&'a [u8]),
    /// The bytes of a `google.rpc.Status`.
    Error(&'a [u8]),
}

/// The results of a `StreamPredictResponse`: the id and outcome of each.
pub fn results(message: &[u8]) -> impl Iterator<Item = Result<(u64, Outcome<'_>), Malformed>> {
    Fields::new(message).filter_map(|field| match field {
        Ok((1, Value::Bytes(result))) => Some(result_of(result)),
        Ok(_) => None,
        Err(malformed) => Some(Err(malformed)),
    })
}

fn result_of(message: &[u8]) -> Result<(u64, Outcome<'_>), Malformed> {
    let (mut id, mut outcome) = (0, None);
    for field in Fields::new(message) {
        match field? {
            (1, Value::Varint(number)) => id = number,
            (2, Value::Bytes(response)) => outcome = Some(Outcome::Response(response)),
            (3, Value::Bytes(error)) => outcome = Some(Outcome::Error(error)),
            _ => {}
        }
    }
    outcome.map(|outcome| (id, outcome)).ok_or(Malformed)
}

/// The code of a `google.rpc.Status`, and the reason of its `ErrorInfo` (empty if it has none).
///
/// # Errors
/// It is no protobuf message.
pub fn status(message: &[u8]) -> Result<(u64, &str), Malformed> {
    let (mut code, mut reason) = (0, "");
    for field in Fields::new(message) {
        match field? {
            (1, Value::Varint(number)) => code = number,
            (3, Value::Bytes(any)) => {
                if let Some(found) = error_info_reason(any)? {
                    reason = found;
                }
            }
            _ => {}
        }
    }
    Ok((code, reason))
}

fn error_info_reason(any: &[u8]) -> Result<Option<&str>, Malformed> {
    let (mut is_error_info, mut value) = (false, &[][..]);
    for field in Fields::new(any) {
        match field? {
            (1, Value::Bytes(url)) => is_error_info = url.ends_with(b"/google.rpc.ErrorInfo"),
            (2, Value::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    if !is_error_info {
        return Ok(None);
    }
    for field in Fields::new(value) {
        if let (1, Value::Bytes(reason)) = field? {
            return str::from_utf8(reason).map(Some).map_err(|_| Malformed);
        }
    }
    Ok(None)
}

/// Appends one item of a `StreamPredictRequest`.
///
/// `timeout` is the encoded `google.protobuf.Duration` of the item, or empty.
pub fn put_item(buffer: &mut Vec<u8>, id: u64, request: &[u8], timeout: &[u8]) {
    let mut length = 1 + varint_length(id) + 1 + varint_length(request.len() as u64) + request.len();
    if !timeout.is_empty() {
        length += 1 + varint_length(timeout.len() as u64) + timeout.len();
    }
    buffer.push(0x12); // items = 2
    put_varint(buffer, length as u64);
    buffer.push(0x08); // id = 1
    put_varint(buffer, id);
    buffer.push(0x12); // request = 2
    put_varint(buffer, request.len() as u64);
    buffer.extend_from_slice(request);
    if !timeout.is_empty() {
        buffer.push(0x1a); // timeout = 3
        put_varint(buffer, timeout.len() as u64);
        buffer.extend_from_slice(timeout);
    }
}

/// A `google.protobuf.Duration`.
#[must_use]
pub fn duration(value: std::time::Duration) -> Vec<u8> {
    let mut buffer = vec![0x08];
    put_varint(&mut buffer, value.as_secs());
    buffer.push(0x10);
    put_varint(&mut buffer, u64::from(value.subsec_nanos()));
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        put_varint(&mut buffer, number << 3 | 2);
        put_varint(&mut buffer, bytes.len() as u64);
        buffer.extend_from_slice(bytes);
        buffer
    }

    #[test]
    fn varints_survive_a_round_trip() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut buffer = Vec::new();
            put_varint(&mut buffer, value);
            assert_eq!(buffer.len(), varint_length(value));
            let mut rest = &buffer[..];
            assert_eq!(varint(&mut rest), Ok(value));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn a_varint_without_end_is_malformed() {
        assert_eq!(varint(&mut &[0x80_u8][..]), Err(Malformed));
        assert_eq!(varint(&mut &[0xff_u8; 11][..]), Err(Malformed));
    }

    #[test]
    fn a_tensor_is_read_with_packed_and_unpacked_shapes() {
        let packed = [field(1, b"y"), vec![0x10, 12], field(3, &[2, 0xac, 2]), field(4, b"abcd")].concat();
        let unpacked = [field(1, b"y"), vec![0x10, 12, 0x18, 2, 0x18, 0xac, 2], field(4, b"abcd")].concat();
        let tensor = Tensor::parse(&packed).unwrap();
        assert_eq!(tensor, Tensor::parse(&unpacked).unwrap());
        assert_eq!((tensor.name, tensor.data_type, tensor.data), (&b"y"[..], 12, &b"abcd"[..]));
        assert_eq!((&tensor.shape[..2], tensor.rank), (&[2, 300][..], 2));
    }

    #[test]
    fn nine_dimensions_are_malformed() {
        assert_eq!(Tensor::parse(&field(3, &[1; 9])), Err(Malformed));
    }

    #[test]
    fn a_cut_message_is_malformed_and_ends_the_walk() {
        let mut message = field(3, b"abc");
        message.pop();
        let walked: Vec<_> = outputs(&message).collect();
        assert_eq!(walked, [Err(Malformed)]);
    }

    #[test]
    fn the_reason_of_an_error_is_found_among_other_details() {
        let info = [field(1, b"QUEUE_FULL"), field(2, b"forebay")].concat();
        let retry = [field(1, b"type.googleapis.com/google.rpc.RetryInfo"), field(2, b"")].concat();
        let any = [field(1, b"type.googleapis.com/google.rpc.ErrorInfo"), field(2, &info)].concat();
        let message = [vec![0x08, 8], field(2, b"full"), field(3, &retry), field(3, &any)].concat();
        assert_eq!(status(&message), Ok((8, "QUEUE_FULL")));
        assert_eq!(status(&[0x08, 4]), Ok((4, "")));
    }

    #[test]
    fn an_item_is_written_as_the_contract_says() {
        let mut buffer = Vec::new();
        put_item(&mut buffer, 300, b"req", &duration(std::time::Duration::from_millis(1500)));
        let Some(Ok((2, Value::Bytes(item)))) = Fields::new(&buffer).next() else { panic!() };
        let fields: Vec<_> = Fields::new(item).map(Result::unwrap).collect();
        assert_eq!(fields[0], (1, Value::Varint(300)));
        assert_eq!(fields[1], (2, Value::Bytes(b"req")));
        let (3, Value::Bytes(timeout)) = fields[2] else { panic!() };
        let parts: Vec<_> = Fields::new(timeout).map(Result::unwrap).collect();
        assert_eq!(parts, [(1, Value::Varint(1)), (2, Value::Varint(500_000_000))]);
    }

    #[test]
    fn results_carry_ids_and_outcomes() {
        let good = [vec![0x08, 7], field(2, b"ok")].concat();
        let bad = [vec![0x08, 8], field(3, &[0x08, 3])].concat();
        let message = [field(1, &good), field(2, b"drain"), field(1, &bad)].concat();
        let walked: Vec<_> = results(&message).map(Result::unwrap).collect();
        assert_eq!(walked, [(7, Outcome::Response(b"ok")), (8, Outcome::Error(&[0x08, 3]))]);
    }

    #[test]
    fn a_result_without_an_outcome_is_malformed() {
        let message = field(1, &[0x08, 7]);
        assert_eq!(results(&message).collect::<Vec<_>>(), [Err(Malformed)]);
    }
}
