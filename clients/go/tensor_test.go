package forebay_test

import (
	"math"
	"slices"
	"testing"

	forebay "github.com/forebay/forebay/clients/go"
	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

func there[T forebay.Element](t *testing.T, dataType forebayv1.DataType, bytes []byte, elements ...T) {
	t.Helper()
	tensor, err := forebay.NewTensor("x", []int64{int64(len(elements))}, elements)
	if err != nil {
		t.Fatal(err)
	}
	if tensor.GetDataType() != dataType || !slices.Equal(tensor.GetData(), bytes) {
		t.Errorf("%v: %v %v", elements, tensor.GetDataType(), tensor.GetData())
	}
	// At an odd address, as it may stand in a message, too.
	odd := append([]byte{0}, bytes...)[1:]
	for _, data := range [][]byte{bytes, odd} {
		back, err := forebay.Values[T](&forebay.Tensor{Name: "x", DataType: dataType, Data: data})
		if err != nil || !slices.Equal(back, elements) {
			t.Errorf("%v: %v %v", elements, back, err)
		}
	}
}

func TestElementsAreLittleEndianBytes(t *testing.T) {
	there(t, forebayv1.DataType_DATA_TYPE_BOOL, []byte{1, 0}, true, false)
	there(t, forebayv1.DataType_DATA_TYPE_UINT8, []byte{1, 255}, uint8(1), 255)
	there(t, forebayv1.DataType_DATA_TYPE_UINT16, []byte{1, 2}, uint16(0x0201))
	there(t, forebayv1.DataType_DATA_TYPE_UINT32, []byte{1, 2, 3, 4}, uint32(0x04030201))
	there(t, forebayv1.DataType_DATA_TYPE_UINT64, []byte{1, 0, 0, 0, 0, 0, 0, 128}, uint64(1<<63+1))
	there(t, forebayv1.DataType_DATA_TYPE_INT8, []byte{255}, int8(-1))
	there(t, forebayv1.DataType_DATA_TYPE_INT16, []byte{254, 255}, int16(-2))
	there(t, forebayv1.DataType_DATA_TYPE_INT32, []byte{253, 255, 255, 255}, int32(-3))
	there(t, forebayv1.DataType_DATA_TYPE_INT64, []byte{252, 255, 255, 255, 255, 255, 255, 255}, int64(-4))
	there(t, forebayv1.DataType_DATA_TYPE_FP32, []byte{0, 0, 128, 63}, float32(1))
	there(t, forebayv1.DataType_DATA_TYPE_FP64, []byte{0, 0, 0, 0, 0, 0, 240, 63}, 1.0)
	there(t, forebayv1.DataType_DATA_TYPE_FP16, []byte{0, 60}, forebay.Float16{Bits: 0x3c00})
	there(t, forebayv1.DataType_DATA_TYPE_BF16, []byte{128, 63}, forebay.BFloat16From(1))
}

func TestElementsAreNotCopied(t *testing.T) {
	elements := []float32{1, 2}
	tensor, err := forebay.NewTensor("x", []int64{2}, elements)
	if err != nil {
		t.Fatal(err)
	}
	elements[0] = 3
	values, err := forebay.Values[float32](tensor)
	if err != nil || values[0] != 3 {
		t.Errorf("%v %v", values, err)
	}
}

func TestBFloat16RoundsToTheNearest(t *testing.T) {
	for number, bits := range map[float32]uint16{
		1:                                0x3f80,
		-2:                               0xc000,
		math.Float32frombits(0x3f808000): 0x3f80, // a tie goes to even
		math.Float32frombits(0x3f818000): 0x3f82,
		math.Float32frombits(0x3f808001): 0x3f81,
		float32(math.Inf(1)):             0x7f80,
	} {
		if got := forebay.BFloat16From(number); got.Bits != bits {
			t.Errorf("%v is %#x, not %#x", number, got.Bits, bits)
		}
	}
	if got := forebay.BFloat16From(float32(math.NaN())).Float32(); got == got {
		t.Errorf("NaN has become %v", got)
	}
}

func TestText(t *testing.T) {
	tensor, err := forebay.NewBytesTensor("x", []int64{2}, []string{"déjà", ""})
	if err != nil {
		t.Fatal(err)
	}
	if want := append([]byte{6, 0, 0, 0}, "déjà\x00\x00\x00\x00"...); !slices.Equal(tensor.GetData(), want) {
		t.Errorf("%q", tensor.GetData())
	}
	back, err := forebay.BytesValues[string](tensor)
	if err != nil || !slices.Equal(back, []string{"déjà", ""}) {
		t.Errorf("%q %v", back, err)
	}
	tensor.Data = tensor.Data[:len(tensor.Data)-1]
	if _, err := forebay.BytesValues[[]byte](tensor); err == nil {
		t.Error("an element that is cut passes")
	}
}

func TestWhatIsNoTensorIsRefused(t *testing.T) {
	for _, shape := range [][]int64{{3}, {-1, -2}, {math.MaxInt64, 2}, {}} {
		if _, err := forebay.NewTensor("x", shape, []float32{1, 2}); err == nil {
			t.Errorf("two elements pass as %v", shape)
		}
	}
	if _, err := forebay.Values[float32](nil); err == nil {
		t.Error("no tensor has values")
	}
	tensor := &forebay.Tensor{Name: "x", DataType: forebayv1.DataType_DATA_TYPE_FP32, Data: []byte{1, 2, 3}}
	if _, err := forebay.Values[float64](tensor); err == nil {
		t.Error("FP32 passes as FP64")
	}
	if _, err := forebay.Values[float32](tensor); err == nil {
		t.Error("three bytes pass as FP32")
	}
}
