package forebay

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

// Tensor is a tensor of the contract: a name, a type, a shape and its elements as bytes.
type Tensor = forebayv1.Tensor

// Element is a Go type whose slices are tensors. BF16 and FP16 have no Go type of their own: see [Float16] and [BFloat16].
type Element interface {
	bool | uint8 | uint16 | uint32 | uint64 | int8 | int16 | int32 | int64 | float32 | float64 | Float16 | BFloat16
}

// Float16 is an IEEE 754 half-precision number, as its bits.
type Float16 struct{ Bits uint16 }

// BFloat16 is the upper half of a float32, as its bits.
type BFloat16 struct{ Bits uint16 }

// BFloat16From rounds a number to the nearest bfloat16, ties to even.
func BFloat16From(number float32) BFloat16 {
	bits := math.Float32bits(number)
	if number != number { // NaN stays one
		return BFloat16{uint16(bits>>16) | 0x40}
	}
	return BFloat16{uint16((bits + 0x7fff + bits>>16&1) >> 16)}
}

// Float32 is the number.
func (b BFloat16) Float32() float32 { return math.Float32frombits(uint32(b.Bits) << 16) }

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// NewTensor makes a tensor of a slice, row-major. On little-endian machines (all common ones) the elements are not copied:
// leave the slice as it is until the call has ended.
func NewTensor[T Element](name string, shape []int64, elements []T) (*Tensor, error) {
	if err := matches(name, shape, len(elements)); err != nil {
		return nil, err
	}
	var zero T
	return &Tensor{Name: name, DataType: dataTypeOf(zero), Shape: shape, Data: bytesOf(elements)}, nil
}

// NewBytesTensor makes a tensor of byte strings or of text.
func NewBytesTensor[T ~string | ~[]byte](name string, shape []int64, elements []T) (*Tensor, error) {
	if err := matches(name, shape, len(elements)); err != nil {
		return nil, err
	}
	size := 4 * len(elements)
	for _, element := range elements {
		size += len(element)
	}
	data := make([]byte, 0, size)
	for _, element := range elements {
		data = binary.LittleEndian.AppendUint32(data, uint32(len(element)))
		data = append(data, element...)
	}
	return &Tensor{Name: name, DataType: forebayv1.DataType_DATA_TYPE_BYTES, Shape: shape, Data: data}, nil
}

// Values gives the elements of a tensor, row-major. Where possible they are the tensor's own bytes and not a copy.
func Values[T Element](tensor *Tensor) ([]T, error) {
	var zero T
	if err := isOf(tensor, dataTypeOf(zero)); err != nil {
		return nil, err
	}
	size := int(unsafe.Sizeof(zero))
	if len(tensor.GetData())%size != 0 {
		return nil, fmt.Errorf("forebay: tensor %q has %d bytes, no multiple of %d", tensor.GetName(), len(tensor.GetData()), size)
	}
	return elementsOf[T](tensor.GetData()), nil
}

// BytesValues gives the elements of a BYTES tensor, as byte strings or as text. Byte strings are the tensor's own bytes.
func BytesValues[T string | []byte](tensor *Tensor) ([]T, error) {
	if err := isOf(tensor, forebayv1.DataType_DATA_TYPE_BYTES); err != nil {
		return nil, err
	}
	var elements []T
	for rest := tensor.GetData(); len(rest) > 0; {
		if len(rest) < 4 || uint64(binary.LittleEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return nil, fmt.Errorf("forebay: tensor %q ends within an element", tensor.GetName())
		}
		end := 4 + int(binary.LittleEndian.Uint32(rest))
		elements = append(elements, T(rest[4:end:end]))
		rest = rest[end:]
	}
	return elements, nil
}

func matches(name string, shape []int64, elements int) error {
	count := int64(1)
	for _, length := range shape {
		if length < 0 || (length > 0 && count > math.MaxInt64/length) {
			return fmt.Errorf("forebay: tensor %q can't have the shape %v", name, shape)
		}
		count *= length
	}
	if count != int64(elements) {
		return fmt.Errorf("forebay: tensor %q of shape %v has %d elements, not %d", name, shape, count, elements)
	}
	return nil
}

func isOf(tensor *Tensor, want forebayv1.DataType) error {
	if tensor == nil {
		return fmt.Errorf("forebay: there is no such tensor")
	}
	if tensor.GetDataType() != want {
		return fmt.Errorf("forebay: tensor %q is of %v, not %v", tensor.GetName(), tensor.GetDataType(), want)
	}
	return nil
}

func dataTypeOf(element any) forebayv1.DataType {
	switch element.(type) {
	case bool:
		return forebayv1.DataType_DATA_TYPE_BOOL
	case uint8:
		return forebayv1.DataType_DATA_TYPE_UINT8
	case uint16:
		return forebayv1.DataType_DATA_TYPE_UINT16
	case uint32:
		return forebayv1.DataType_DATA_TYPE_UINT32
	case uint64:
		return forebayv1.DataType_DATA_TYPE_UINT64
	case int8:
		return forebayv1.DataType_DATA_TYPE_INT8
	case int16:
		return forebayv1.DataType_DATA_TYPE_INT16
	case int32:
		return forebayv1.DataType_DATA_TYPE_INT32
	case int64:
		return forebayv1.DataType_DATA_TYPE_INT64
	case float32:
		return forebayv1.DataType_DATA_TYPE_FP32
	case float64:
		return forebayv1.DataType_DATA_TYPE_FP64
	case Float16:
		return forebayv1.DataType_DATA_TYPE_FP16
	case BFloat16:
		return forebayv1.DataType_DATA_TYPE_BF16
	}
	return forebayv1.DataType_DATA_TYPE_UNSPECIFIED
}

// bytesOf gives the little-endian bytes of a slice: its own memory where that is the same.
func bytesOf[T Element](elements []T) []byte {
	if len(elements) == 0 {
		return nil
	}
	size := int(unsafe.Sizeof(elements[0]))
	// No element type has padding or pointers, so its memory is its value.
	own := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(elements))), len(elements)*size)
	if littleEndian || size == 1 {
		return own
	}
	return swapped(own, size)
}

// elementsOf gives the elements that little-endian bytes are: the same memory if it is aligned for them.
func elementsOf[T Element](data []byte) []T {
	var zero T
	size := int(unsafe.Sizeof(zero))
	if len(data) == 0 {
		return nil
	}
	if _, isBool := any(zero).(bool); isBool {
		// A Go bool that is neither 0 nor 1 is not defined, so these are not taken as they are.
		elements := make([]T, len(data))
		for i, b := range data {
			elements[i] = any(b != 0).(T)
		}
		return elements
	}
	if !littleEndian && size > 1 {
		data = swapped(data, size)
	}
	pointer := unsafe.Pointer(unsafe.SliceData(data))
	if uintptr(pointer)%unsafe.Alignof(zero) == 0 {
		return unsafe.Slice((*T)(pointer), len(data)/size)
	}
	elements := make([]T, len(data)/size)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(elements))), len(data)), data)
	return elements
}

func swapped(data []byte, size int) []byte {
	made := make([]byte, len(data))
	for start := 0; start < len(data); start += size {
		for i := range size {
			made[start+i] = data[start+size-1-i]
		}
	}
	return made
}
