package forebay

import (
	"context"
	"fmt"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

// Priority is a request's weight among others of its tenant.
type Priority = forebayv1.Priority

// The priorities.
const (
	High   = forebayv1.Priority_PRIORITY_HIGH
	Normal = forebayv1.Priority_PRIORITY_NORMAL
	Low    = forebayv1.Priority_PRIORITY_LOW
)

// Timings tells where the time of a request went.
type Timings = forebayv1.Timings

// RequestOption changes a request.
type RequestOption func(*forebayv1.PredictRequest)

// Version chooses a version, by number or label.
func Version(version string) RequestOption {
	return func(r *forebayv1.PredictRequest) { r.Version = version }
}

// Outputs chooses outputs, by name.
func Outputs(names ...string) RequestOption {
	return func(r *forebayv1.PredictRequest) { r.Outputs = names }
}

// WithPriority sets the weight among the tenant's other requests.
func WithPriority(priority Priority) RequestOption {
	return func(r *forebayv1.PredictRequest) { r.Priority = priority }
}

// RequestID sets an id that is echoed, and is in the server's logs.
func RequestID(id string) RequestOption {
	return func(r *forebayv1.PredictRequest) { r.RequestId = id }
}

// ReportTimings asks for [Result.Timings].
func ReportTimings() RequestOption {
	return func(r *forebayv1.PredictRequest) { r.ReportTimings = true }
}

// Parameter passes a value to engines that take one. Only requests with equal parameters share a batch.
func Parameter[T bool | int | int64 | float64 | string](name string, value T) RequestOption {
	parameter := &forebayv1.Parameter{}
	switch value := any(value).(type) {
	case bool:
		parameter.Value = &forebayv1.Parameter_BoolValue{BoolValue: value}
	case int:
		parameter.Value = &forebayv1.Parameter_IntValue{IntValue: int64(value)}
	case int64:
		parameter.Value = &forebayv1.Parameter_IntValue{IntValue: value}
	case float64:
		parameter.Value = &forebayv1.Parameter_DoubleValue{DoubleValue: value}
	case string:
		parameter.Value = &forebayv1.Parameter_StringValue{StringValue: value}
	}
	return func(r *forebayv1.PredictRequest) {
		if r.Parameters == nil {
			r.Parameters = map[string]*forebayv1.Parameter{}
		}
		r.Parameters[name] = parameter
	}
}

// Result is what a model answered.
type Result struct {
	// Model is its name.
	Model string
	// Version is the one that ran.
	Version int64
	// Outputs are in the order in which they were asked for, or in that of the model.
	Outputs []*Tensor
	// RequestID is the one that was sent.
	RequestID string
	// Timings are there if they were asked for.
	Timings *Timings
}

// Output is the output of a name; nil if there is none.
func (r *Result) Output(name string) *Tensor {
	for _, output := range r.Outputs {
		if output.GetName() == name {
			return output
		}
	}
	return nil
}

// Predict runs one request. A request may have many rows; they share batches with those of other callers.
//
// What was shed is sent again after the time that the server asked for, and what met nobody after a pause, as [Retry] says;
// the context's deadline is that of all attempts together.
func (c *Client) Predict(ctx context.Context, model string, inputs []*Tensor, options ...RequestOption) (*Result, error) {
	ctx, cancel := c.call(ctx)
	defer cancel()
	request := requestOf(model, inputs, options)
	response, err := retried(ctx, c.retry, c.budget, newPauses(), func() (*forebayv1.PredictResponse, *Error) {
		var trailer metadata.MD
		response, err := c.inference.Predict(ctx, request, grpc.Trailer(&trailer))
		return response, fromCall(ctx, err, trailer)
	})
	if err != nil {
		return nil, err
	}
	return resultOf(response), nil
}

func requestOf(model string, inputs []*Tensor, options []RequestOption) *forebayv1.PredictRequest {
	request := &forebayv1.PredictRequest{Model: model, Inputs: inputs}
	for _, option := range options {
		option(request)
	}
	return request
}

func resultOf(response *forebayv1.PredictResponse) *Result {
	return &Result{
		Model:     response.GetModel(),
		Version:   response.GetVersion(),
		Outputs:   response.GetOutputs(),
		RequestID: response.GetRequestId(),
		Timings:   response.GetTimings(),
	}
}

// Row gives the elements of one row of a tensor whose dimension 0 is the batch.
func Row[T Element](tensor *Tensor, row int) ([]T, error) {
	values, err := Values[T](tensor)
	if err != nil {
		return nil, err
	}
	shape := tensor.GetShape()
	if len(shape) == 0 || row < 0 || int64(row) >= shape[0] || shape[0] > math.MaxInt {
		return nil, fmt.Errorf("forebay: tensor %q of shape %v has no row %d", tensor.GetName(), shape, row)
	}
	width := len(values) / int(shape[0])
	return values[row*width : (row+1)*width : (row+1)*width], nil
}
