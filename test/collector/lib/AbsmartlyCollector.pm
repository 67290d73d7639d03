package AbsmartlyCollector;

# Starts a development collector for a test and talks to its admin API.
#
#   my $collector = AbsmartlyCollector->start(data => 'experiments.json', keys => ['secret']);
#   ... point the software under test to $collector->url('/v1') ...
#   my $request = $collector->wait_for_request(method => 'PUT', space => '/v1', timeout => 5);
#   $collector->stop;
#
# All calls are synchronous and bounded in time. The collector ends with the object, and with the test in any case.
# Needs only core Perl and Mojolicious.

use strict;
use warnings;

use Carp qw(croak);
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp ();
use HTTP::Tiny;
use Mojo::JSON qw(decode_json encode_json);
use POSIX qw(WNOHANG);
use Scalar::Util qw(weaken);
use Time::HiRes qw(sleep time);

use constant {
    PATIENCE     => $ENV{PG_TEST_TIMEOUT_DEFAULT} || 120,    # seconds that anything may take
    POLL_SECONDS => 0.02,
};

my $FOLDER = abs_path(dirname(__FILE__) . '/..');

my %running;    # pid => object, for END

# Starts a collector and waits until it listens. Dies with its log if it does not.
#   data        a file, a folder, JSON text or a structure; default: the demonstration data
#   keys        the API keys to accept in all spaces; none: no check
#   batch       0: answers 404 to PUT /context/batch
#   space_data  {'/v1' => JSON text or structure}
#   space_keys  {'/v1' => ['key']}
#   listen      default http://127.0.0.1:0
#   options     further command-line options, an array
sub start {
    my ($class, %args) = @_;

    my $self = bless {
        owner    => $$,
        folder   => File::Temp->newdir('collector-XXXXXX', TMPDIR => 1),
        listen   => delete $args{listen} // 'http://127.0.0.1:0',
        options  => [@{delete $args{options} || []}],
        settings => {},    # space => {data => bytes, keys => array, batch => bool, selected => [[data, selector]]}
        files    => 0,
        http     => HTTP::Tiny->new(timeout => PATIENCE, keep_alive => 0, proxy => undef, http_proxy => undef,
            https_proxy => undef),
    }, $class;

    my $data = delete $args{data} // "$FOLDER/data/demo.json";
    $data = $self->_new_file(_json_text($data)) if ref $data || $data =~ /\A\s*[\{\[]/;
    push @{$self->{options}}, '--data', $data;
    push @{$self->{options}}, map { ('--api-key', $_) } @{delete $args{keys} || []};
    push @{$self->{options}}, '--no-batch' unless delete($args{batch}) // 1;
    my $space_data = delete $args{space_data} || {};
    my $space_keys = delete $args{space_keys} || {};
    $self->{settings}{_space($_)}{data} = _json_text($space_data->{$_}) for keys %$space_data;
    $self->{settings}{_space($_)}{keys} = $space_keys->{$_}             for keys %$space_keys;
    croak 'unknown arguments: ' . join ', ', sort keys %args if %args;

    $self->_launch($self->{listen});
    return $self;
}

# Seconds that calls and waits may take, by default: those of PG_TEST_TIMEOUT_DEFAULT, as in PostgreSQL's own tests.
sub patience { return PATIENCE }

# The URL of a space, by default /v1: what the software under test takes as its endpoint.
sub url {
    my ($self, $space) = @_;
    return $self->{url} . ($space // '/v1');
}

sub admin_url { my ($self) = @_; return "$self->{url}/_" }

sub port { my ($self) = @_; return $self->{url} =~ /:([0-9]+)\z/ ? $1 : undef }

sub pid { my ($self) = @_; return $self->{pid} }

# What the collector has logged: a line per request, and errors.
sub log_text {
    my ($self) = @_;
    return join '', map { _read_file($_) } grep { -e } map {"$self->{folder}/$_"} qw(log output);
}

# Replaces the context data of a space. $data is JSON text (bytes, served as they are) or a structure.
# Selectors: application, environment.
sub set_data {
    my ($self, $space, $data, %selector) = @_;
    my $bytes    = _json_text($data);
    my $settings = $self->{settings}{_space($space)} ||= {};
    if (%selector) { push @{$settings->{selected}}, [$bytes, {%selector}] }
    else           { $settings->{data} = $bytes }
    $self->_admin(PUT => 'data', {%selector, space => $space}, $bytes);
    return;
}

# Back to the data given at the start.
sub clear_data {
    my ($self, $space) = @_;
    delete @{$self->{settings}{_space($space)} ||= {}}{qw(data selected)};
    $self->_admin(DELETE => 'data', {space => $space});
    return;
}

# The keys a space accepts from now on; an empty list accepts all, undef means those given at the start.
sub set_keys {
    my ($self, $space, $keys) = @_;
    $self->{settings}{_space($space)}{keys} = $keys;
    if ($keys) { $self->_admin(PUT => 'keys', {space => $space}, encode_json($keys)) }
    else       { $self->_admin(DELETE => 'keys', {space => $space}) }
    return;
}

# Switches PUT /context/batch on or off.
sub set_batch {
    my ($self, $space, $on) = @_;
    $self->{settings}{_space($space)}{batch} = $on ? 1 : 0;
    $self->_admin(PUT => 'options', {space => $space}, $on ? '{"batch":true}' : '{"batch":false}');
    return;
}

# Queues faults for a space and returns their numbers. A fault is a structure or JSON text.
sub fault {
    my ($self, $space, @faults) = @_;
    my @ids;
    push @ids, @{$self->_admin(POST => 'faults', {space => $space}, _json_text($_))->{ids}} for @faults;
    return wantarray ? @ids : $ids[0];
}

# The same in place of those that are there: no request comes between them.
sub replace_faults {
    my ($self, $space, @faults) = @_;
    return @{$self->_admin(POST => 'faults', {space => $space, replace => 1}, encode_json(\@faults))->{ids}};
}

# Removes the faults of a space, or of all spaces.
sub clear_faults {
    my ($self, $space) = @_;
    return $self->_admin(DELETE => 'faults', {space => $space})->{cleared};
}

# The faults still queued for a space.
sub faults {
    my ($self, $space) = @_;
    return @{$self->_admin(GET => 'faults', {space => $space})->{_space($space)} || []};
}

# The requests received, oldest first. Filters: space, method, path ("context", "context/batch", or a whole path that
# begins with "/"), state, since (a request's number), last (that many), bodies => 0 (without bodies).
# A request with a JSON body has it decoded in the field json.
sub requests {
    my ($self, %filter) = @_;
    my $requests = $self->_admin(GET => 'requests', \%filter);
    for my $request (@$requests) {
        next unless length($request->{body} // '') && ($request->{body_encoding} // '') ne 'latin1';
        my $bytes = $request->{body};
        utf8::encode($bytes);
        $request->{json} = eval { decode_json($bytes) };
    }
    return @$requests;
}

# The publish requests of accepted PUTs, the items of batches one by one. Filters as for requests; accepted => 0 gives
# those of refused PUTs too.
sub publish_requests {
    my ($self, %filter) = @_;
    my $accepted = delete $filter{accepted} // 1;
    my @found;
    for my $request ($self->requests(%filter, method => 'PUT')) {
        next unless ref $request->{json} eq 'HASH' && ($request->{accepted} || !$accepted);
        my $items = $request->{operation} eq 'context' ? [$request->{json}] : $request->{json}{requests};
        push @found, @$items if ref $items eq 'ARRAY';
    }
    return @found;
}

# Single events of accepted publish requests, oldest first. Filters: those of requests, name, and all => 1 for those of
# refused requests too.
sub exposures  { my ($self, %filter) = @_; return @{$self->_admin(GET => 'exposures',  \%filter)} }
sub goals      { my ($self, %filter) = @_; return @{$self->_admin(GET => 'goals',      \%filter)} }
sub attributes { my ($self, %filter) = @_; return @{$self->_admin(GET => 'attributes', \%filter)} }

# The counters of one space, or the whole statistics without an argument.
sub stats {
    my ($self, $space) = @_;
    my $stats = $self->_admin(GET => 'stats', {space => $space});
    return defined $space ? $stats->{spaces}{_space($space)} : $stats;
}

# The number of the newest request, for since.
sub last_request_number { my ($self) = @_; return $self->stats->{last} }

# Forgets the requests received, of one space or of all.
sub forget {
    my ($self, $space) = @_;
    $self->_admin(DELETE => 'requests', {space => $space});
    return;
}

# Waits until a request exists that fits, and returns it; returns undef after the time-out (default: patience).
#   wait_for_request(sub { ...$_[0] is the request... }, 5)
#   wait_for_request(method => 'GET', state => 'pending', timeout => 5, match => sub { ... })
sub wait_for_request {
    my ($self, @args) = @_;
    my $match   = ref $args[0] eq 'CODE' ? shift @args : undef;
    my $timeout = @args % 2 ? pop @args : undef;
    my %filter  = @args;
    $match   = delete $filter{match} if exists $filter{match};
    $timeout = delete $filter{timeout} // $timeout;

    my ($found, $settled) = (undef, $filter{since} // 0);
    $self->wait_until(
        sub {
            my $behind_pending = 0;
            for my $request ($self->requests(%filter, since => $settled)) {
                return $found = $request if !$match || $match->($request);

                # Requests that will not change any more need not be fetched again.
                $behind_pending ||= $request->{state} eq 'pending';
                $settled = $request->{n} unless $behind_pending || $filter{state};
            }
            return 0;
        },
        $timeout
    );
    return $found;
}

# Calls the function until it returns something true, and returns that; undef after the time-out (default: patience).
sub wait_until {
    my ($self, $function, $timeout) = @_;
    my $end = time + ($timeout // PATIENCE);
    while (1) {
        my $value = $function->();
        return $value if $value;
        return undef if time >= $end;
        sleep POLL_SECONDS;
    }
}

sub is_running {
    my ($self) = @_;
    return 0 unless $self->{pid};
    return 1 if waitpid($self->{pid}, WNOHANG) == 0;
    $self->_gone;
    return 0;
}

# Ends the collector: politely, by force if it takes too long. Its URL answers no more.
sub stop {
    my ($self) = @_;
    return unless $self->is_running;
    CORE::kill('TERM', $self->{pid});
    CORE::kill('CONT', $self->{pid});
    my $end = time + PATIENCE;
    while ($self->is_running) {
        return $self->kill if time > $end;
        sleep 0.01;
    }
    return;
}

# Ends the collector at once, as a crash would.
sub kill {
    my ($self) = @_;
    return unless $self->is_running;
    CORE::kill('KILL', $self->{pid});
    waitpid $self->{pid}, 0;
    $self->_gone;
    return;
}

# Stops the collector if it still runs, and starts it again on the same port. Data, keys and the batch switch that were
# set are kept; requests and faults are forgotten.
sub restart {
    my ($self) = @_;
    $self->stop;
    my $query = $self->{listen} =~ /(\?.*)\z/ ? $1 : '';
    $self->_launch($self->{url} . $query);
    return;
}

# The process stands still: connections are accepted by the kernel, nothing is answered. Until resume.
sub pause  { my ($self) = @_; CORE::kill('STOP', $self->{pid}) if $self->is_running; return }
sub resume { my ($self) = @_; CORE::kill('CONT', $self->{pid}) if $self->is_running; return }

sub DESTROY {
    my ($self) = @_;
    return if $$ != $self->{owner};
    local ($?, $@, $!);
    $self->stop;
}

END {
    local $?;
    for my $collector (values %running) {
        $collector->stop if $collector && $collector->{owner} == $$;
    }
}

sub _launch {
    my ($self, $listen) = @_;

    my $port_file = "$self->{folder}/url";
    unlink $port_file;
    my @command = (
        $^X, "$FOLDER/collector", '--listen', $listen, '--port-file', $port_file,
        '--log', "$self->{folder}/log", '--parent', $$, @{$self->{options}},
    );
    my %settings = %{$self->{settings}};
    for my $space (sort keys %settings) {
        push @command, '--space-data', "$space=" . $self->_new_file($settings{$space}{data})
            if defined $settings{$space}{data};
        push @command, map { ('--space-key', "$space=$_") } @{$settings{$space}{keys} || []};
    }

    my $pid = fork // croak "cannot fork: $!";
    if (!$pid) {
        open STDIN,  '<',  '/dev/null';
        open STDOUT, '>>', "$self->{folder}/output";
        open STDERR, '>&', \*STDOUT;
        delete $ENV{PERL5OPT};
        exec {$command[0]} @command or POSIX::_exit(127);
    }
    $self->{pid} = $pid;
    weaken($running{$pid} = $self);

    my $end = time + PATIENCE;
    until (-e $port_file) {
        my $running = $self->is_running;
        next if $running && time < $end && sleep 0.01;
        $self->kill;
        croak 'the collector does not start: ' . ($running ? 'it takes too long' : 'it ended') . "\n" . $self->log_text;
    }
    ($self->{url} = _read_file($port_file)) =~ s/\s+\z//;

    for my $space (sort keys %settings) {
        my $wanted = $settings{$space};
        $self->_admin(PUT => 'keys', {space => $space}, '[]') if $wanted->{keys} && !@{$wanted->{keys}};
        $self->_admin(PUT => 'options', {space => $space}, $wanted->{batch} ? '{"batch":true}' : '{"batch":false}')
            if defined $wanted->{batch};
        $self->_admin(PUT => 'data', {%{$_->[1]}, space => $space}, $_->[0]) for @{$wanted->{selected} || []};
    }
}

sub _gone {
    my ($self) = @_;
    delete $running{delete $self->{pid}};
}

# An admin call; returns the decoded answer, dies if it is refused.
sub _admin {
    my ($self, $method, $call, $query, $content) = @_;
    my %given    = map { defined $query->{$_} ? ($_ => $query->{$_}) : () } keys %{$query || {}};
    my $url      = $self->admin_url . "/$call" . (%given ? '?' . $self->{http}->www_form_urlencode(\%given) : '');
    my $response = $self->{http}->request($method, $url, defined $content ? {content => $content} : {});
    croak "collector: $method $call: $response->{status} $response->{content}" unless $response->{success};
    return decode_json($response->{content});
}

sub _new_file {
    my ($self, $bytes) = @_;
    my $file = "$self->{folder}/data." . ++$self->{files};
    open my $handle, '>:raw', $file or croak "cannot write $file: $!";
    print {$handle} $bytes;
    close $handle or croak "cannot write $file: $!";
    return $file;
}

sub _read_file {
    my ($file) = @_;
    open my $handle, '<:raw', $file or croak "cannot read $file: $!";
    local $/;
    return readline($handle) // '';
}

# Structures are encoded; text is taken as bytes, characters beyond them as UTF-8.
sub _json_text {
    my ($data) = @_;
    return encode_json($data) if ref $data;
    utf8::encode($data) if utf8::is_utf8($data) && !utf8::downgrade(my $copy = $data, 1);
    return $data;
}

sub _space {
    my ($space) = @_;
    $space =~ s{/+\z}{};
    return $space =~ m{\A/} ? $space : "/$space";
}

1;
