// Package forebay is a client for Forebay, a gRPC-native inference server.
//
//	client, err := forebay.Dial("localhost:8500")
//	...
//	defer client.Close()
//	images, err := forebay.NewTensor("x", []int64{1, 64}, pixels)
//	...
//	result, err := client.Predict(ctx, "digits", []*forebay.Tensor{images})
//	...
//	probabilities, err := forebay.Values[float32](result.Output("probabilities"))
//
// The deadline of the context is the deadline of the request: the server refuses at once what it can't finish by then, and
// never runs what nobody waits for. A call without one gets [DefaultTimeout].
//
// Errors of the server are of type [*Error], which tells its reason and whether and when to try again. What is safe to
// try again by itself, gRPC does within the deadline (see [Dial]).
//
// The generated stubs, for all that this package leaves out, are in
// github.com/forebay/forebay/gen/go/forebay/v1; [Client.Conn] gives the connection for them.
package forebay
