// A program of Go without libc: goroutines, files, a server on loopback, a child.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var sum int
	var lock sync.Mutex
	var all sync.WaitGroup
	for i := 1; i <= 1000; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			lock.Lock()
			defer lock.Unlock()
			sum += i
		}()
	}
	all.Wait()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, sum)
	}))
	answer, err := http.Get("http://" + listener.Addr().String())
	check(err)
	body, err := io.ReadAll(answer.Body)
	check(err)
	check(os.WriteFile("/tmp/sum", body, 0o600))
	output, err := exec.Command("/bin/cat", "/tmp/sum").Output()
	check(err)
	fmt.Printf("go %s\n", output)
}
